"""The paper's tables and ours, from the files under results/."""
