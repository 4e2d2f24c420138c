"""Numbers that states give people, by their check digits (python-stdnum) and by what stands near them.

A number whose check digits, dates and letters leave less than about one in a hundred others right is taken as it
stands; all others need a word nearby that says what they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from align.cleaning.library import library
from align.cleaning.private.found import Stretch, is_called, one_of

ANY = (
    "national id|national number|national code|identity number|identity card|id number|id no|id card|identification|"
    "personal id|personal number|personal code|citizen|social security|social insurance|tax id|"
    "taxpayer|passport or id|nid|national identity|insurance number|"
    "身份证|身份證|证件号|公民身份|کد ملی|کدملی|شماره ملی|کارت ملی|شناسنامه|ملی"
)
"""Words for such numbers anywhere."""


@dataclass(frozen=True)
class Identity:
    """A country's number: how it is written, what checks it (a module of stdnum, or Iran's), its own names."""

    pattern: str
    module: str
    words: str
    stands_alone: bool = False

    @property
    def finder(self) -> re.Pattern[str]:
        return re.compile(rf"(?<![A-Za-z0-9_.,+-])(?:{self.pattern})(?![A-Za-z0-9_]|[.,-]\d)", re.IGNORECASE)


IRAN, CHINA = "iran", "china"
IDENTITIES = (
    Identity(r"\d{17}[\dX]", CHINA, "身份证", stands_alone=True),
    Identity(r"\d{3}[ -]?\d{6}[ -]?\d", IRAN, "کد ملی|شماره ملی|کدملی|melli|national code"),
    Identity(r"\d{3}-\d{2}-\d{4}", "us.ssn", "ssn|social security", stands_alone=True),
    Identity(r"\d{9}", "us.ssn", "ssn|social security"),
    Identity(r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf", "cpf", stands_alone=True),
    Identity(r"\d{11}", "br.cpf", "cpf"),
    Identity(r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]", "it.codicefiscale", "codice fiscale", stands_alone=True),
    Identity(r"\d{8}-?[A-Z]", "es.dni", "dni|nif|documento", stands_alone=True),
    Identity(r"[XYZ]-?\d{7}-?[A-Z]", "es.nie", "nie", stands_alone=True),
    Identity(r"[12] ?\d\d ?\d\d ?[\dAB]{2} ?\d{3} ?\d{3} ?\d\d", "fr.nir", "sécurité sociale|nir", stands_alone=True),
    Identity(r"\d{6}-\d{7}", "kr.rrn", "주민등록번호|주민", stands_alone=True),
    Identity(r"\d{6}[-+A]\d{3}[0-9A-Y]", "fi.hetu", "henkilötunnus|hetu", stands_alone=True),
    Identity(r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[0-9A-Z]\d", "mx.curp", "curp", stands_alone=True),
    Identity(r"\d\d\.\d\d\.\d\d-\d{3}[. ]\d\d", "be.nn", "rijksregisternummer|registre national", stands_alone=True),
    Identity(r"\d\d ?\d\d ?\d\d ?\d{3} ?\d\d", "be.nn", "rijksregisternummer|registre national"),
    Identity(r"\d{4} ?\d{4} ?\d{4}", "in_.aadhaar", "aadhaar|aadhar|आधार"),
    Identity(r"[A-Z]{5}\d{4}[A-Z]", "in_.pan", "pan|permanent account"),
    Identity(r"\d{11}", "pl.pesel", "pesel"),
    Identity(r"\d{11}", "tr.tckimlik", "kimlik|tc kimlik|tckn"),
    Identity(
        r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "de.idnr", "steuer-id|steuer-identifikationsnummer|idnr|steueridentifikation"
    ),
    Identity(r"\d{9}|\d{4}\.\d{2}\.\d{3}", "nl.bsn", "bsn|burgerservicenummer|sofinummer"),
    Identity(r"\d{3}[ -]?\d{3}[ -]?\d{3}", "ca.sin", "sin|social insurance"),
    Identity(r"\d{3}[ -]?\d{3}[ -]?\d{4}", "gb.nhs", "nhs"),
    Identity(r"(?:\d{2})?\d{6}[-+]?\d{4}", "se.personnummer", "personnummer|personal number"),
    Identity(r"\d{6}-?\d{4}", "dk.cpr", "cpr"),
    Identity(r"\d{6} ?\d{5}", "no.fodselsnummer", "fødselsnummer|fodselsnummer|personnummer"),
    Identity(r"\d{13}", "za.idnr", "south african id|id number"),
    Identity(r"\d{13}", "ro.cnp", "cnp|cod numeric personal"),
    Identity(r"\d{12}", "ru.inn", "инн"),
    Identity(r"\d{4} ?\d{4} ?\d{4}", "jp.in_", "マイナンバー|個人番号|my number"),
    Identity(r"\d ?\d{4} ?\d{5} ?\d\d ?\d|\d-\d{4}-\d{5}-\d\d-\d", "th.pin", "บัตรประชาชน|เลขประจำตัว|thai id"),
    Identity(r"\d{5}-\d{7}-\d", "pk.cnic", "cnic|شناختی"),
    Identity(r"\d{1,2}\.?\d{3}\.?\d{3}-[\dK]", "cl.rut", "rut|run"),
    Identity(r"\d{16}", "id.nik", "nik|ktp"),
    Identity(r"\d{9}|\d{7,8}-\d", "il.idnr", "teudat zehut|תעודת זהות|ת\\.ז"),
    Identity(r"\d{6}-?\d\d-?\d{4}", "my.nric", "mykad|nric|kad pengenalan"),
)
"""Of 28 countries; the first that fits decides nothing but that it is one."""


def is_code_melli(number: str) -> bool:
    """Whether ten digits are an Iranian national code (کد ملی): the last is the sum of the others, each times its place
    from the right (10 to 2), modulo 11, or 11 less that where it is 2 or more; ten equal digits are none."""
    digits = [int(d) for d in number if d.isdigit()]
    if len(digits) != 10 or len(set(digits)) == 1:
        return False
    rest = sum(d * (10 - i) for i, d in enumerate(digits[:9])) % 11
    return digits[9] == (rest if rest < 2 else 11 - rest)


def is_resident(number: str) -> bool:
    """Whether 18 digits are a Chinese resident identity number (GB 11643-1999): a province, a birthday, and the check
    of ISO 7064, mod 11-2. Counties are not looked up, for people keep the number of one that is no more."""
    try:
        date.fromisoformat(f"{number[6:10]}-{number[10:12]}-{number[12:14]}")
    except ValueError:
        return False
    is_likely = "11" <= number[:2] <= "82" and "1900" <= number[6:10] <= "2099"
    return is_likely and bool(library("stdnum.iso7064.mod_11_2", "Finding national ids").is_valid(number.upper()))


def _is_valid(number: str, module: str) -> bool:
    if module == CHINA:
        return is_resident(number)
    if module == IRAN:
        return is_code_melli(number)
    return bool(library(f"stdnum.{module}", "Finding national ids").is_valid(number))


FINDERS = [(identity, identity.finder, one_of(f"{identity.words}|{ANY}")) for identity in IDENTITIES]
LIKELY = re.compile(r"\d{5}|\d{3}[-. ]\d|[A-Z]{4}\d")


def national_ids(text: str) -> Iterator[Stretch]:
    if not LIKELY.search(text):
        return
    for identity, finder, words in FINDERS:
        for match in finder.finditer(text):
            called = is_called(text, match.start(), match.end(), words)
            if (called or (called is None and identity.stands_alone)) and _is_valid(match[0], identity.module):
                yield Stretch(match.start(), match.end(), "national_id")
