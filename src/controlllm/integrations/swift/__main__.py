"""Print the file that `swift --external_plugins` wants."""

from pathlib import Path

print(Path(__file__).with_name("_plugin.py"))
