"""`musubi init`: from a folder of clips to the files that a run needs."""
