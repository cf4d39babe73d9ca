"""The report page: what a results table holds, as a static page (`build`) or served with all of its rows (`serve`)."""
