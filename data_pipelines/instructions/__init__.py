"""Instructions: sentences and their tokens, vocabularies, pictures of clothes."""
