"""Take a trained model away: the forms in which it leaves, one file each.

writing     `export`: a folder that appears whole or not at all
forms       The contract of a form, and the registry `FORMS`
full        The whole model: base and trained parts in one
sidecar     The trained tensors, apart from their base
adapter     The adapters of a base, as PEFT writes them
collapsed   The trained parts folded by weight into the base's own class
lora        The collapsed difference as a LoRA of the base, its error measured
gguf        One GGUF file for llama.cpp and Ollama, by way of a plain model
converter   llama.cpp's converter, as it is packaged
chat_facts  What imports break on: template, EOS and BOS, found by rendering
modelfile   What Ollama makes a model of
alphas      At which alphas a model is folded, in words
unrolled    A stack as the plain, deeper architecture
"""
