"""The web page of ``gsqtok app``: `views` makes images and tables, `codebook` plots, `page` the page around them."""
