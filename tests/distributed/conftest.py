"""Runs that several real processes train together, by gloo on the CPU."""

from tests.train.conftest import loaded, pretrained_pico, run_config, texts  # noqa: F401
