"""What is known: base models, licences, accelerators, hyperparameters, recipes, guides."""
