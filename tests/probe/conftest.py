"""A pico model whose copies differ from their twins, and texts for it."""

import pytest
import torch

from controlllm import expand
from controlllm.probe import Study, StudySettings, Text

LEARN = ("the cat sat on the mat.", "a dog ran by", "two birds sing in the tree")
RETAIN = ("old words stay", "as they have always been here")


def trained(base, **settings):
    """An expanded model, its copies and ends moved by noise."""
    model = expand(base, **{"layers": [1, 3], **settings}).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".expanded." in name or ".interpolator.weight" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.1 * noise.to(parameter.dtype)
    return model


@pytest.fixture
def study_of(pico_llama, pico_tokenizer):
    """`study_of(retain=RETAIN, structure="stack")`: a study of a fresh model."""

    def make(retain=(), settings=None, **expansion):
        def texts(lines):
            found = []
            for line in lines:
                ids = torch.tensor([pico_tokenizer(line).input_ids])
                labels = ids.clone()
                labels[0, 0] = -100
                found.append(Text(ids, labels, pico_tokenizer))
            return found

        settings = StudySettings(**{"max_new_tokens": 4, **(settings or {})})
        model = trained(pico_llama(), **expansion)
        return Study(model, pico_tokenizer, texts(LEARN), texts(retain), settings)

    return make
