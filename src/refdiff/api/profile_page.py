def page_of_profile(report): return ""
