"""The command `nnunet_ext`: one thin module per subcommand, which imports what it needs only when it runs."""
