"""Shows what a training has come to: pictures, and one page that holds them all."""
