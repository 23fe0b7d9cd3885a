"""The files of examples/deploy and the commands of docs/running.md, with the programs that read them."""
