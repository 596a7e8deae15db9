"""What belongs to the command line, around `fvlight.cli`: networks by name, processes, resume, whole papers."""
