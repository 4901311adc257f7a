"""What every part of the package uses: checks, files, progress, threads, results."""
