"""What a recipe makes its encoder learn, one objective a file, behind the one loop."""
