"""The command `nnunet_ext`: one thin module a subcommand, which imports what it needs only when it runs."""
