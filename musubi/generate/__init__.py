"""Words to video: `run` is the command, `session` one loaded model, `prompts` the inline grammar."""
