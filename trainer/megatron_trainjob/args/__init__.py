"""The arguments: declared in groups/, read by parse, cli, yaml_file, completed by derive, validated by rules."""
