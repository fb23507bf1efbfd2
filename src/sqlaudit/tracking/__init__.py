"""What is tracked, and where are its versions kept?"""
