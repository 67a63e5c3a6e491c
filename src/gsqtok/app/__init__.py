"""The web page of ``gsqtok app``: `views` makes pictures and tables, `codebook` plots, `page` the page around them."""
