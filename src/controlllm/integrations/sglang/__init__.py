"""SGLang: an external model package that serves expanded models at the alpha they were saved with.

    SGLANG_EXTERNAL_MODEL_PACKAGE=controlllm.integrations.sglang \
      python -m sglang.launch_server --model-path FOLDER

Written for SGLang's documented interface (each module of the package names its `EntryClass`) and
its transformers backend; not run. Nothing here imports SGLang before it looks for models.

model   The model class on SGLang's transformers backend
checks  What it cannot serve, refused before anything is loaded
"""

__all__: list[str] = []
