"""What a run file may say, and what goes together.

compatibility      What works with what: the table that runs are checked by
config_io          Between nested dicts, YAML and dataclasses: strict about names and types
debug_config       What a run shows of itself when something is wrong with it
evaluation_config  What is measured while a run trains, beside the losses of its held-out sets
logging_config     Where metrics go
method_config      The settings that are a method's own
methods            The methods, each with what a run config has to know of it; `setup.methods` holds
                   what they do
optimizers         The optimizers, each with what a run config and a plan know of it; `step.optim`
                   makes them
parallel_config    How the processes of a run share the model
presets            Presets: bundles of defaults that belong together
registries         Names that a run file uses and that users' own code may add to: back ends,
                   schedules, loggers
rehearsal_config   Self-rehearsal: what the base writes, and how much of it is trained on
run_config         The run config: one typed object that says everything about a run and can
                   repeat it
strategies         The ways in which processes share a model, each with all that is known of it
support            The part of docs/support.md that is made of what runs are checked by
training_config    How a run trains: steps, optimizer, precision, evaluation, checkpoints, budgets
unread             Which settings of a run are read when: what is said and not read is refused, or
                   warned of
ways               The ways to go on from an earlier run (`continue_by`), each with what a run
                   config has to know of it
"""
