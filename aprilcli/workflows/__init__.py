"""The commands: one options class and one run function each."""
