"""The workflows: what each command does, from its options to its output."""
