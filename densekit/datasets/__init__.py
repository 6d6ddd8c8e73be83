"""Pictures, pairs and masks from files, their checks, and the crops that training draws from them."""
