"""Words and sentence patterns of the procedural sources, in SmolLM3's six languages.

Everything that a chain of reasoning copies is meant to be one token each: short names, short
words, and digits that follow a sign. The Llama-3 split gives " 3" as " " and "3", but ":3" as ":"
and "3".
"""

from __future__ import annotations

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Ana Jan Eva Leo Mia Tom Kim Max Noa Ben Ida Sam Liv Ole Zoe Per Ada Ali Amy Bob "
    "Dan Ella Emil Finn Hugo Iris Jon Kai Lena Lars Maya Nils Olga Paul Rosa Ruth "
    "Sara Theo Vera Yann"
)
WORDS = _words(
    "apple bread chair cloud dog door fish flag goat glass hand horse island key lamp "
    "leaf lion milk moon mouse nail ocean paper pearl piano rice ring river road salt "
    "ship snow spoon star stone table tiger train tree wolf"
)
CITIES = _words(
    "Rome Paris Madrid Berlin Lisbon Vienna Oslo Dublin Athens Prague Milan Lyon "
    "Porto Seville Bremen Turin"
)


@dataclass(frozen=True)
class Language:
    """numbers: 0 to 30. question: a sum of two numbers. fact: its statement, with the result.

    stories: sentences with {a} and {b} for people, {w} and {v} for things, {p} for a place,
    {n} for a number. greetings: (user, answer) with {name} for the model's name.
    """

    numbers: tuple[str, ...]
    question: str
    fact: str
    things: tuple[str, ...]
    places: tuple[str, ...]
    stories: tuple[str, ...]
    greetings: tuple[tuple[str, str], ...]


LANGUAGES = {
    "en": Language(
        numbers=_words(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen "
            "fourteen fifteen sixteen seventeen eighteen nineteen twenty twenty-one "
            "twenty-two twenty-three twenty-four twenty-five twenty-six twenty-seven twenty-eight "
            "twenty-nine thirty"
        ),
        question="How much is {a} plus {b}?",
        fact="{a} plus {b} is {c}.",
        things=_words("apple book key lamp letter coat basket candle map bell ball cup hat box"),
        places=_words("market river garden school kitchen station forest harbour bridge"),
        stories=(
            "{a} goes to the {p} with {b}.",
            "In the morning {a} looks for a {w}.",
            "{b} finds the {w} near the {p}.",
            "{a} has {n} friends and one {w}.",
            "It rains, so {a} and {b} stay in the {p}.",
            "{b} gives the {w} to {a}.",
            "They sell the {w} and buy a {v}.",
            "In the evening {a} tells {b} a story about a {v}.",
            "Nobody in the {p} has seen the {v}.",
            "{a} counts to {n} and laughs.",
        ),
        greetings=(
            ("Hello!", "Hello! How can I help?"),
            ("Good morning!", "Good morning! What can I do for you?"),
            ("Who are you?", "I am {name}, a small language model."),
            ("What is your name?", "My name is {name}."),
            ("How are you?", "I am well, thank you."),
            ("Thank you!", "You are welcome!"),
            ("Goodbye!", "Goodbye!"),
        ),
    ),
    "fr": Language(
        numbers=_words(
            "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze "
            "quinze seize dix-sept dix-huit dix-neuf vingt vingt-et-un vingt-deux vingt-trois "
            "vingt-quatre vingt-cinq vingt-six vingt-sept vingt-huit vingt-neuf trente"
        ),
        question="Combien font {a} plus {b} ?",
        fact="{a} plus {b} font {c}.",
        things=_words(
            "livre stylo panier chapeau manteau miroir ballon bateau couteau tapis sac vase"
        ),
        places=_words("marché jardin port village pont parc musée bois moulin"),
        stories=(
            "{a} va au {p} avec {b}.",
            "Le matin, {a} cherche un {w}.",
            "{b} trouve le {w} près du {p}.",
            "{a} a {n} amis et un {w}.",
            "Il pleut, alors {a} et {b} restent au {p}.",
            "{b} donne le {w} à {a}.",
            "Ils vendent le {w} et achètent un {v}.",
            "Le soir, {a} raconte à {b} une histoire.",
            "Personne au {p} n'a vu le {v}.",
            "{a} compte jusqu'à {n} et rit.",
        ),
        greetings=(
            ("Bonjour !", "Bonjour ! Comment puis-je aider ?"),
            ("Qui es-tu ?", "Je suis {name}, un petit modèle de langue."),
            ("Comment ça va ?", "Ça va bien, merci."),
            ("Merci !", "Avec plaisir !"),
            ("Au revoir !", "Au revoir !"),
        ),
    ),
    "es": Language(
        numbers=_words(
            "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece "
            "catorce quince dieciséis diecisiete dieciocho diecinueve veinte veintiuno "
            "veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete veintiocho "
            "veintinueve treinta"
        ),
        question="¿Cuánto es {a} más {b}?",
        fact="{a} más {b} son {c}.",
        things=_words(
            "libro vaso sombrero espejo barco zapato cuchillo papel reloj saco anillo pan"
        ),
        places=_words("mercado puerto parque pueblo bosque puente museo campo patio"),
        stories=(
            "{a} va al {p} con {b}.",
            "Por la mañana {a} busca un {w}.",
            "{b} encuentra el {w} cerca del {p}.",
            "{a} tiene {n} amigos y un {w}.",
            "Llueve, así que {a} y {b} se quedan en el {p}.",
            "{b} da el {w} a {a}.",
            "Venden el {w} y compran un {v}.",
            "Por la noche {a} cuenta a {b} una historia.",
            "Nadie en el {p} ha visto el {v}.",
            "{a} cuenta hasta {n} y ríe.",
        ),
        greetings=(
            ("¡Hola!", "¡Hola! ¿En qué puedo ayudar?"),
            ("¿Quién eres?", "Soy {name}, un pequeño modelo de lengua."),
            ("¿Cómo estás?", "Estoy bien, gracias."),
            ("¡Gracias!", "¡De nada!"),
            ("¡Adiós!", "¡Adiós!"),
        ),
    ),
    "de": Language(
        numbers=_words(
            "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn "
            "vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn zwanzig einundzwanzig "
            "zweiundzwanzig dreiundzwanzig vierundzwanzig fünfundzwanzig sechsundzwanzig "
            "siebenundzwanzig achtundzwanzig neunundzwanzig dreißig"
        ),
        question="Wie viel ist {a} plus {b}?",
        fact="{a} plus {b} ist {c}.",
        things=_words("Hut Korb Brief Mantel Spiegel Ball Schlüssel Apfel Löffel Stein Ring Stuhl"),
        places=_words("Markt Garten Hafen Wald Bahnhof Park Turm See Berg"),
        stories=(
            "{a} geht mit {b} zum {p}.",
            "Am Morgen sucht {a} den {w}.",
            "{b} findet den {w} neben dem {p}.",
            "{a} hat {n} Freunde und einen {w}.",
            "Es regnet, also warten {a} und {b} am {p}.",
            "{b} gibt {a} den {w}.",
            "Sie verkaufen den {w} und kaufen einen {v}.",
            "Am Abend erzählt {a} von dem {v}.",
            "Niemand am {p} hat den {v} gesehen.",
            "{a} zählt bis {n} und lacht.",
        ),
        greetings=(
            ("Hallo!", "Hallo! Wie kann ich helfen?"),
            ("Wer bist du?", "Ich bin {name}, ein kleines Sprachmodell."),
            ("Wie geht es dir?", "Mir geht es gut, danke."),
            ("Danke!", "Gern geschehen!"),
            ("Auf Wiedersehen!", "Auf Wiedersehen!"),
        ),
    ),
    "it": Language(
        numbers=_words(
            "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici "
            "quattordici quindici sedici diciassette diciotto diciannove venti ventuno "
            "ventidue ventitré ventiquattro venticinque ventisei ventisette ventotto "
            "ventinove trenta"
        ),
        question="Quanto fa {a} più {b}?",
        fact="{a} più {b} fa {c}.",
        things=_words(
            "libro cesto cappello vaso cappotto pane coltello tavolo martello dado sacco"
        ),
        places=_words("mercato porto parco villaggio bosco ponte museo campo giardino"),
        stories=(
            "{a} va al {p} con {b}.",
            "Al mattino {a} cerca un {w}.",
            "{b} trova il {w} vicino al {p}.",
            "{a} ha {n} amici e un {w}.",
            "Piove, quindi {a} e {b} restano al {p}.",
            "{b} dà il {w} a {a}.",
            "Vendono il {w} e comprano un {v}.",
            "La sera {a} racconta a {b} una storia.",
            "Nessuno al {p} ha visto il {v}.",
            "{a} conta fino a {n} e ride.",
        ),
        greetings=(
            ("Ciao!", "Ciao! Come posso aiutare?"),
            ("Chi sei?", "Sono {name}, un piccolo modello di lingua."),
            ("Come stai?", "Sto bene, grazie."),
            ("Grazie!", "Prego!"),
            ("Arrivederci!", "Arrivederci!"),
        ),
    ),
    "pt": Language(
        numbers=_words(
            "zero um dois três quatro cinco seis sete oito nove dez onze doze treze catorze "
            "quinze dezasseis dezassete dezoito dezanove vinte vinte-e-um vinte-e-dois "
            "vinte-e-três vinte-e-quatro vinte-e-cinco vinte-e-seis vinte-e-sete vinte-e-oito "
            "vinte-e-nove trinta"
        ),
        question="Quanto é {a} mais {b}?",
        fact="{a} mais {b} são {c}.",
        things=_words("livro cesto chapéu vaso casaco espelho barco sapato anel saco papel pão"),
        places=_words("mercado porto parque bosque museu campo jardim moinho lago"),
        stories=(
            "{a} vai ao {p} com {b}.",
            "De manhã {a} procura um {w}.",
            "{b} encontra o {w} perto do {p}.",
            "{a} tem {n} amigos e um {w}.",
            "Chove, por isso {a} e {b} ficam no {p}.",
            "{b} dá o {w} a {a}.",
            "Vendem o {w} e compram um {v}.",
            "À noite {a} conta a {b} uma história.",
            "Ninguém no {p} viu o {v}.",
            "{a} conta até {n} e ri.",
        ),
        greetings=(
            ("Olá!", "Olá! Como posso ajudar?"),
            ("Quem és tu?", "Sou {name}, um pequeno modelo de língua."),
            ("Como estás?", "Estou bem, obrigado."),
            ("Obrigado!", "De nada!"),
            ("Adeus!", "Adeus!"),
        ),
    ),
}
