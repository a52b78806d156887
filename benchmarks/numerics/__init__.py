"""How exact the numbers are: errors of low precision, of few images, of short chains, and bits that differ."""
