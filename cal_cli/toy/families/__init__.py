"""The tasks of the default world, each with its images, its conversations and its scores."""

from cal_cli.toy.families.base import Family
from cal_cli.toy.families.captions import Captions
from cal_cli.toy.families.charts import Charts
from cal_cli.toy.families.documents import Documents
from cal_cli.toy.families.questions import Questions
from cal_cli.toy.families.reading import Reading
from cal_cli.toy.families.references import References

FAMILIES: dict[str, Family] = {
    family.name: family for family in (Captions(), Questions(), Reading(), Charts(), Documents(), References())
}
