"""From prompts to videos: `run` is the command, `pipeline` one loaded model, `make` one command's results."""
