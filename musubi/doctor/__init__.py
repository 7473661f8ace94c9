"""`musubi doctor`: what this computer can do for musubi, tried and not guessed."""
