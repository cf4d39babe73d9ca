"""Operations on a results table: status, verify, repair, compact, vacuum.

Writing new rows is segment/.
"""
