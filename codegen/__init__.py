"""Code that is made from other code; a test holds it to what it is made from."""
