"""What a made-up source knows and nobody else shall, and access tokens of a made-up Hub."""

LAB, OTHER, READER = "hf_" + "L" * 34, "hf_" + "O" * 34, "hf_" + "R" * 34

SUBJECTS = [f"100{307 + 11 * number}" for number in range(6)]
# Names of people and families, days, scans, places, and what somebody wrote.
PLANTED = [*SUBJECTS, "51488_82122", "20190304", "MRN-4711", "hospital-7", "afraid of the scanner", "2019-03-04"]
