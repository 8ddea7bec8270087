"""`python -m fusedformer`: the `fusedformer` command where no script was installed for it."""

from fusedformer.cli import main

if __name__ == "__main__":
    main()
