"""What comes in and goes out: pictures, data sets, artefacts, reports."""
