"""The file that `swift --external_plugins` names; the package's `__main__` says where it is."""

from controlllm.integrations.swift import register

register()
