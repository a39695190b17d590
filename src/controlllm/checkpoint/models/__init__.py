"""Any saved form becomes a model: found, looked at, loaded, exported.

apart         What is saved apart from its base, wherever it lies, and its tensors whole
export        Take a trained model away: the forms in which it leaves
inspection    What a saved model consists of, read from configs and file headers
load_options  How a model is loaded: one config for verbs and for runs
loading       Any folder or name to a model and its tokenizer
locate        What a path or name is: one small pure look at file names, before anything is
              loaded
named         Several sidecars, each with a name, on one base
parents       Stages that a sidecar was trained after, found again; those beside it are put on its
              base
whole         A whole model by transformers, of which nothing is missing
"""
