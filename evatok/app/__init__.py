"""The page that `evatok app` serves: plain functions, pictures for a browser, and the page."""
