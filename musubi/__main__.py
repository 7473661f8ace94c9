"""`python -m musubi`, which is also what `accelerate launch -m musubi` starts."""

from musubi.cli import main

if __name__ == "__main__":
    main()
