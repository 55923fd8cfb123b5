"""Secrets of a simulated source, which may not be published, and access tokens of a simulated Hub."""

LAB, OTHER, READER = "hf_" + "L" * 34, "hf_" + "O" * 34, "hf_" + "R" * 34

SUBJECTS = [f"100{307 + 11 * number}" for number in range(6)]
SITES = ["Leiden-2180", "Langone-11"]
# Ids of subjects, families and scans, sites, sessions, dates, folders, and free text.
PLANTED = [*SUBJECTS, *SITES, "51488_82122", "fam3_82", "MRN-4711", "hospital-7", "afraid of the scanner", "/home/"]
PLANTED += ["2019-03-04", *(f"2019030{number}" for number in range(6))]
