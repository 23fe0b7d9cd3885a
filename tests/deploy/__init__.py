"""The files for deployment and the commands of docs/running.md, with the programs that read them."""
