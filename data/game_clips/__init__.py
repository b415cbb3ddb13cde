"""What the recipes of game clips share: engine, recorder, player, words, resampling, worker processes."""
