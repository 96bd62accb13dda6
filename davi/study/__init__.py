"""Studies: the same question asked of several trainings, with what the literature has published beside the answers.

A study is data, a file of :mod:`davi.study.format` in ``davi/studies``; ``davi study`` lists, shows and runs them.

* :mod:`davi.study.format` reads one, without torch.
* :mod:`davi.study.folder` is the folder in which one is run, and everything that is known about its trainings.
* :mod:`davi.study.running` trains and measures the arms in turns. Whatever it does can be killed and is resumed.
* :mod:`davi.study.collecting` makes a :mod:`~davi.study.result` of what is measured so far.
* :mod:`davi.study.tables`, :mod:`davi.study.figures` and :mod:`davi.study.page` show that.
"""
