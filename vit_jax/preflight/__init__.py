"""What a training step needs of a machine, known before there is one."""
