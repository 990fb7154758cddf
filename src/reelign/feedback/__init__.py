"""Human feedback: pairs are shown to people, votes are kept with their provenance, statistics say what follows."""
