"""The words of the quickstart orders: values and sentences, each pool used by one split alone.

A frame is a sentence with slots. ``{want}`` is quantity and item ("three oak stools"), ``{item}`` and
``{items}`` the item in singular and plural, ``{n}`` the quantity in digits, ``{count}`` in digits or
words, ``{many}`` the same and more than one, ``{it}`` "it" or "them". The others carry no label:
``{other}`` and ``{others}`` a second item, ``{away}`` a second city, ``{friend}`` and ``{clerk}`` a
second person by first or full name, ``{few}``, ``{code}`` and ``{phone}`` numbers, ``{day}`` a weekday.

Which answer a sentence asks for, as a person would read it: the city is where the parcel goes, the
name is the customer's, and the order is urgent when waiting more than about a day does harm or speed
is asked for; otherwise, also when nothing is said, it is normal.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Values:
    """What answers are made of. ``nouns``: kind of modifier -> nouns, ``singular|plural`` if irregular."""

    nouns: dict[str, str]
    first_names: str
    last_names: str
    cities: str


@dataclass(frozen=True)
class Voice:
    """Sentences of one register, to be freely combined.

    ``orders`` hold the item and perhaps name and city; ``intros`` (before the order) and ``closings``
    (last) the name and perhaps the city; ``places`` the city. ``urgent`` and ``calm`` follow the order,
    ``urgent_first`` and ``calm_first`` stand before it. ``asides`` mislead. ``joins`` stand between
    sentences; ``typo_share`` is the share of rows with a slip in one word that is not a value,
    ``full_names`` the share of customers with first and last name.
    """

    greetings: tuple[str, ...]
    intros: tuple[str, ...]
    orders: tuple[str, ...]
    places: tuple[str, ...]
    urgent: tuple[str, ...]
    urgent_first: tuple[str, ...]
    calm: tuple[str, ...]
    calm_first: tuple[str, ...]
    asides: tuple[str, ...]
    closings: tuple[str, ...]
    joins: tuple[str, ...] = (" ",)
    capitals: bool = True
    typo_share: float = 0.0
    full_names: float = 0.55


# Colours, sizes and materials are shared by all splits; the nouns behind them are not.
MODIFIERS: dict[str, tuple[str, ...]] = {
    "table": ("", "blue", "white", "yellow", "ceramic", "stoneware", "large", "dark blue", "small grey"),
    "wood": ("", "oak", "walnut", "pine", "bamboo", "white", "small", "dark oak", "large pine"),
    "metal": ("", "steel", "copper", "brass", "black", "small", "matt black", "large steel"),
    "cloth": ("", "cotton", "linen", "grey", "striped", "red", "grey cotton", "white linen", "dark green"),
    "gear": ("", "leather", "canvas", "black", "small", "brown leather", "green", "red canvas"),
    "device": ("", "black", "white", "portable", "small", "compact", "silver", "small white"),
}

TRAIN_VALUES = Values(
    nouns={
        "table": "mug,teapot,salad bowl,butter dish|butter dishes,jug,egg cup,dinner plate,sugar pot,vase",
        "wood": "cutting board,bookshelf|bookshelves,stool,picture frame,coat hanger,bread box|bread boxes,"
        "bench|benches,side table,wine rack",
        "metal": "kettle,saucepan,door handle,baking tray,candlestick,watering can,bucket,mailbox|mailboxes",
        "cloth": "blanket,cushion,tablecloth,apron,bath towel,scarf|scarves,curtain,pillowcase,napkin",
        "gear": "backpack,notebook,laptop sleeve,wallet,belt,pencil case,travel bag,folder,sketchbook",
        "device": "desk lamp,radio,alarm clock,headset,torch|torches,fan,webcam,bike light,charger,doorbell",
    },
    first_names="Anna Marco Elena Jonas Priya Tomas Lucia Erik Fatima Daniel Sofia Henrik Maya Oscar Ingrid "
    "Pablo Clara Viktor Nadia Samuel Greta Diego Hannah Omar Julia Felix Amara Luis Karin Peter "
    "Rosa Stefan Mina Robert Alice Kenji Laura Andre Helen Simon Zoe Martin Aisha Paul Lena "
    "Victor Sara Nils Ines Joseph Gabriel Monica Rashid Yvonne Thomas Ewa Dimitri Chiara Walter "
    "Nina Arjun Brigitte Caleb Delphine Edgar Freya Giulia Hassan Isabel Jakob Katrin Lorenzo "
    "Maria Nikolai Odette Patrick Quentin Rebecca Sven Tatiana Ulrich Valeria William Ximena "
    "Yusuf Zara Arthur Bettina Cyril Dolores Elliot Fiona Gregor Hiroshi Ivana Jasper Kirsten "
    "Ludwig Marta Nathan Ophelia Piotr Ramona Silvio Thea Umberto Veronika Wilma Xavier Yolanda "
    "Zoltan Abigail Bernard Cecilia Duncan Estelle Frank Gloria Harold Imani Joanna Kevin Linda "
    "Maurice Nicole Otto Penelope Raymond Susanne Theo Ursula Vincent Winston Yasmin Alfred "
    "Barbara Charles Denise Edward Flora George Hilda Isaac Jessica Karl Lydia Mohamed Naomi "
    "Oliver Pauline Reinhard Sylvia Trevor Vanessa Wolfgang Agnieszka Boris Camila Dieter Emma "
    "Francesca Gunnar Heidi Igor Jamila Klaus Lilian Mikael Natalia Osman",
    last_names="Keller Rossi Novak Silva Berg Moreau Okafor Lindqvist Garcia Schmidt Jansen Costa Patel "
    "Weber Nowak Hansen Murphy Dubois Fischer Romano Kowalski Laine Andersen Torres Baker "
    "Wright Sato Mensah Haas Vogel Petrov Marino Olsen Byrne Conti Meyer Duarte Lang Horvat "
    "Ahmed Reid Blanc Ferreira Walsh Kaya Nilsson Brandt Fontaine Cruz Maier Abbott Barros "
    "Carlsen Dalton Engel Fraser Gruber Haddad Ibrahim Jovanovic Kruger Larsson Mancini "
    "Nakamura Oliveira Popescu Quinn Ramirez Santoro Tremblay Urban Vargas Whitaker Yilmaz "
    "Zimmermann Arnaud Bernardi Castillo Devlin Esposito Fonseca Gallagher Hoffman Iglesias "
    "Johansson Kovacs Leclerc Mbeki Nielsen Ortiz Paulsen Rahman Serrano Thompson Ueda Vasquez "
    "Wagner Xu Yamada Zeller Aguilar Bauer Chaudhry Desjardins Eriksen Fabbri Gomes Herzog "
    "Irving Jacobs Kaufman Lombardi Mazur Norton Osborne Pereira Rinaldi Schreiber Tavares "
    "Ulloa Virtanen Westberg Youssef Ziegler Armstrong Barbieri Cardoso Donovan Ellis Fleming "
    "Graves Halvorsen Iqbal Jimenez Kimura Lopes Marchetti Nyberg Orlando Palmer Roth Steiner "
    "Turner Vidal Watanabe Zapata Aydin Brennan Coleman Drummond",
    cities="Lyon Porto Ghent Graz Turin Seville Leipzig Utrecht Aarhus Bergen Tampere Krakow Brno "
    "Dublin Leeds Glasgow Bristol Nantes Toulouse Bilbao Valencia Bologna Naples Hamburg "
    "Dresden Basel Lucerne Linz Prague Gdansk Riga Vilnius Tartu Oslo Lisbon Rotterdam Antwerp "
    "Boston Denver Seattle Chicago Toronto Ottawa Perth Auckland Nairobi Accra Mumbai Osaka "
    "Lima Amsterdam Athens Ankara Augsburg Baltimore Bangkok Barcelona Bari Belfast Belgrade "
    "Berlin Birmingham Bratislava Bruges Brussels Bucharest Budapest Buffalo Catania Chennai "
    "Cleveland Coimbra Columbus Copenhagen Cordoba Dallas Delft Delhi Dortmund Durban Dundee "
    "Dusseldorf Edinburgh Exeter Fargo Florence Frankfurt Freiburg Grenoble Groningen Haarlem "
    "Hanover Havana Heidelberg Helsinki Hobart Istanbul Izmir Jakarta Jena Kampala Karachi "
    "Kassel Katowice Kiel Kobe Konstanz Lausanne Leicester Leiden Lille Limerick Limoges London "
    "Lublin Lubeck Lusaka Luxembourg Maribor Mannheim Memphis Messina Metz Milan Montpellier "
    "Monterrey Moscow Mainz Munich Murcia Nagoya Namur Nashville Newcastle Norwich Nottingham "
    "Nuremberg Oakland Omaha Oulu Oxford Padua Parma Perugia Philadelphia Pittsburgh Plymouth "
    "Potsdam Pretoria Pune Quebec Ravenna Reykjavik Rimini Rome Rostock Rouen Sacramento "
    "Santiago Sarajevo Seoul Siena Skopje Southampton Strasbourg Sydney Szeged Taipei Tampa "
    "Tirana Tokyo Toledo Trento Trondheim Tucson Vaasa Vancouver Varna Venice Vienna Warsaw "
    "Weimar Wellington Winnipeg Wuppertal York Zadar",
)

VALIDATION_VALUES = Values(
    nouns={
        "table": "saucer,cake stand",
        "wood": "footstool,toy chest",
        "metal": "coat hook,frying pan",
        "cloth": "bedspread,oven glove",
        "gear": "satchel,key ring",
        "device": "thermometer,keyboard,wall switch|wall switches",
    },
    first_names="Sabine Enzo Tessa Magnus Rania Kurt Daria Ruben Elsa Adrian Yara Noel",
    last_names="Albrecht Gallo Hruby Teixeira Solberg Mercier Eze Sandberg Ortega Peeters Foster Bose",
    cities="Stuttgart Rennes Pisa Cardiff Gothenburg Madrid Bern Tallinn Miami Hanoi",
)

TEST_VALUES = Values(
    nouns={
        "table": "goblet,platter,gravy boat,pitcher",
        "wood": "chopping block,easel,rocking chair,wardrobe",
        "metal": "corkscrew,wok,lantern,bread knife|bread knives",
        "cloth": "bathrobe,quilt,rug,hammock",
        "gear": "rucksack,briefcase,suitcase,pouch|pouches",
        "device": "loudspeaker,power strip,kitchen scale,monitor,umbrella",
    },
    first_names="Miriam Leon Carla Hugo Yuki Tobias Agnes Rafael Leila Gustav Nora Ivan Paula Emil "
    "Sandra Kofi Vera Anton Judith Mateo Signe Bruno Farah Colin",
    last_names="Winkler Ricci Dvorak Almeida Strand Lefebvre Adeyemi Holm Navarro Krause Visser Pinto "
    "Sharma Becker Zielinski Madsen Kelly Girard Richter Greco Tanaka Boateng Hughes "
    "Sandoval",
    cities="Bremen Marseille Verona Cork Sheffield Uppsala Odense Granada Zurich Wroclaw Zagreb "
    "Maastricht Portland Atlanta Montreal Melbourne Kyoto Bogota Lagos Tunis Salzburg Genoa",
)

REPHRASED_VALUES = Values(
    nouns={
        "table": "ramekin,tumbler,flowerpot,cookie jar",
        "wood": "nightstand,chessboard,crate,birdhouse",
        "metal": "whisk,padlock,ladle,hammer",
        "cloth": "sweater,poncho,bathmat,beanie",
        "gear": "handbag,camera strap,dog collar,purse",
        "device": "printer,microphone,projector,hair dryer,wristwatch|wristwatches",
    },
    first_names="Ilse Renato Petra Callum Noor Matthias Bianca Axel Samira Lars Edith Jorge Wanda "
    "Philip Teresa Kwame Olga Fabian Irene Alvaro Astrid Dominic Zainab Graham",
    last_names="Hofmann Bianchi Svoboda Carvalho Dahl Rousseau Balogun Ekberg Delgado Schuster Bakker "
    "Moura Gupta Lorenz Wojcik Iversen Doyle Lambert Kaiser Ferrari Suzuki Asante Bennett "
    "Molina",
    cities="Cologne Bordeaux Palermo Galway Liverpool Turku Stavanger Malaga Geneva Poznan "
    "Ljubljana Eindhoven Houston Calgary Brisbane Sapporo Quito Dakar Cairo Innsbruck "
    "Trieste Detroit",
)

TRAIN_VOICE = Voice(
    greetings=("Hello,", "Hi,", "Good morning,", "Dear team,", "Good evening,", "Hi there,", "Hello team,"),
    intros=(
        "My name is {name}.",
        "This is {name}.",
        "I am {name}.",
        "{name} here.",
        "{name} speaking.",
        "This is {name} from {city}.",
        "I am {name} and I live in {city}.",
        "My name is {name} and I am writing from {city}.",
    ),
    orders=(
        "I would like to order {want}.",
        "Please send me {want}.",
        "Could you send me {want}?",
        "We need {want} for our new office.",
        "I want to buy {want}.",
        "Can I still get {want} from you?",
        "Please put me down for {want}.",
        "My order: {want}.",
        "This time it will be {want}.",
        "I saw the {item} in your window and would like {count}.",
        "The {item} in your catalogue looks perfect, I will take {count}.",
        "I am looking for {want} for my mother.",
        "We have decided on {want}.",
        "Please reserve {want} for us.",
        "I no longer want the {other}, please send {want} instead.",
        "Not the {other} this time, but {want}, please.",
        "We have enough {others} but are missing {want}.",
        "Do you still sell the {item}? I need {count}.",
        "Please add the {item} to my basket, quantity {n}.",
        "{want}, please.",
        "Order: {item}, {n} in total.",
        "Please ship {want} to {city}.",
        "I need {want} delivered to {city}.",
        "Can you send {want} to our office in {city}?",
        "We are opening a cafe in {city} and need {want}.",
        "Please post {want} to my flat in {city}.",
        "{want} for our shop in {city}, please.",
        "I have moved from {away} to {city} and need {want}.",
        "Send {want} to {city}, not to {away}.",
        "Please send {want} to {name} in {city}.",
        "Order for {name}, {city}: {want}.",
        "{name} from {city} would like {want}.",
        "I am {name} and I would like {want}.",
        "Please book {want} under the name {name}.",
        "{name} would like to have {want} sent to {city}.",
        "New order: {n} x {item}, customer {name}, {city}.",
    ),
    places=(
        "Please deliver to {city}.",
        "The parcel goes to {city}.",
        "I live in {city}.",
        "Our office is in {city}.",
        "The delivery address is in {city}.",
        "Send everything to {city}, please.",
        "We are based in {city}.",
        "Shipping to {city}, not {away}.",
        "We moved from {away} to {city} last year.",
        "It goes to my house in {city}.",
    ),
    urgent=(
        "I need {it} by tomorrow.",
        "It is urgent.",
        "Please hurry, we have none left.",
        "Please send {it} today.",
        "I cannot wait longer than a day.",
        "We open tomorrow and have nothing.",
        "The party starts tonight.",
        "My guests arrive this evening.",
        "Please use the fastest delivery you have.",
        "As soon as possible, please.",
        "Every hour counts.",
        "My customer is already waiting.",
        "We need {it} right away.",
        "I leave for the airport in three hours.",
        "Without {it} we have to close tomorrow.",
        "Please send a courier at once.",
        "This is an emergency.",
        "It has to happen today.",
        "Express, please, I will pay extra.",
        "The wedding is tomorrow.",
        "We have run out and work has stopped.",
        "Can you make it within 24 hours?",
        "Please treat this as top priority.",
        "I need {it} before noon.",
        "The photo shoot is tomorrow at nine.",
        "There is no time to lose.",
        "The inspector comes tomorrow.",
        "Please do this first, it is pressing.",
        "I cannot be without {it} for another day.",
        "The deadline is tonight.",
        "My flight goes this evening and I must have {it}.",
        "Please ship within the hour.",
        "People are standing here and asking for {it}.",
        "Our event is already under way.",
        "I hope you can bring {it} this afternoon.",
        "Any delay would cost us the contract.",
        "Same-day delivery, please.",
        "The shop is empty and today is the sale.",
        "I need {it} immediately.",
        "We are desperate.",
        "Please put this at the top of your list.",
        "The film crew arrives at seven tomorrow.",
        "If it comes after tomorrow, it is useless.",
        "By this evening at the latest, please.",
        "We cannot go on without {it}.",
        "Please send {it} overnight.",
        "The faster the better, money is no issue.",
        "The ceremony begins in five hours.",
        "Everything is blocked until {it} can be used.",
        "Please react quickly.",
        "Our boss wants {it} now.",
        "We had a fire and need {it} at once.",
    ),
    urgent_first=(
        "Urgent!",
        "We are in a real hurry.",
        "This cannot wait.",
        "Help, we ran out last night!",
        "I need something by tonight.",
        "We have an emergency here.",
        "Can you help me fast?",
        "I am in trouble and short of time.",
        "This one is pressing.",
        "The clock is against us.",
    ),
    calm=(
        "There is no hurry.",
        "Take your time.",
        "Any day next month is fine.",
        "No need to rush.",
        "We only need {it} in the summer.",
        "Two or three weeks is fine for us.",
        "Use the cheapest shipping, time does not matter.",
        "This is for Christmas, so there is plenty of time.",
        "Send {it} whenever it suits you.",
        "I am away until next month anyway.",
        "Slow delivery is fine.",
        "It can wait.",
        "This is not urgent.",
        "Please do not rush.",
        "I can wait a few weeks.",
        "Normal delivery is enough.",
        "We are just restocking for the autumn.",
        "Send {it} with the next regular delivery.",
        "The renovation only starts in spring.",
        "There is no deadline.",
        "Whenever you have time.",
        "It is for a birthday in three months.",
        "What we have still works, so I can wait.",
        "Standard post is fine.",
        "I do not mind when it arrives.",
        "Next quarter is early enough.",
        "Please take all the time you want.",
        "We will not use {it} before March.",
        "It would be nice to have {it} by the end of the year.",
        "You can put it on the next truck that comes our way.",
        "We are stocking up early.",
        "There is no pressure at all.",
        "Sea freight is fine.",
        "Sometime in the coming weeks would be lovely.",
        "My holiday lasts until August, so deliver later.",
        "The move is only in half a year.",
        "Delivery can take a month.",
        "I am not in a hurry.",
        "The cheapest option is best, however slow.",
        "We plan for next year.",
        "No date needed.",
        "I am happy to wait.",
        "We still have a few, so later is fine.",
        "Just an ordinary order.",
        "Economy delivery, please.",
        "The fair is in ten months.",
    ),
    calm_first=(
        "Nothing urgent.",
        "We are planning ahead for next season.",
        "This is for later in the year.",
        "I have time, so no stress.",
        "This order may take a while.",
        "I am only thinking about next year.",
        "Let us do this slowly.",
        "There is plenty of time for this one.",
    ),
    asides=(
        "My phone number is {phone}.",
        "My last order was number {code}.",
        "We still have enough {others}.",
        "I do not need the {other} any more.",
        "My friend {friend} recommended you.",
        "My colleague {friend} ordered here last year.",
        "My shop is closed on {day}s.",
        "The invoice goes to our office in {away}.",
        "Your shop in {away} was closed.",
        "Last year I bought {few} {others} from you.",
        "My customer number is {code}.",
        "No {others} this time, please.",
        "Please do not send the {other} again.",
        "I grew up in {away}, by the way.",
        "You can call me on {day}s.",
    ),
    closings=(
        "Best regards, {name}",
        "Thanks, {name}",
        "Thank you, {name}",
        "Kind regards, {name}",
        "- {name}",
        "Yours, {name}",
        "Many thanks, {name}",
        "Regards, {name}, {city}",
        "The order is for {name}.",
        "Please write {name} on the parcel.",
    ),
)

VALIDATION_VOICE = Voice(
    greetings=("Good afternoon,", "Hello everyone,"),
    intros=("I go by {name}.", "{name} is ordering here.", "Here is {name}, from {city}."),
    orders=(
        "I have chosen {want}.",
        "Please get {want} ready for me.",
        "May I ask for {want}?",
        "I am interested in the {item}, please send {count}.",
        "No {other} for me, I prefer {want}.",
        "We would like {want} for our hotel in {city}.",
        "Please have {want} brought to {city}.",
        "The customer {name} in {city} needs {want}.",
        "Please set aside {want} for {name}.",
        "{want} would make me happy.",
    ),
    places=("We will receive it in {city}.", "My home is in {city}.", "The goods should travel to {city}."),
    urgent=(
        "We need {it} this very day.",
        "Please be very quick.",
        "Our guests come in an hour.",
        "It must be there by tomorrow noon.",
        "We cannot work until it arrives.",
    ),
    urgent_first=("It is really pressing.",),
    calm=(
        "We have lots of time.",
        "Next month is early enough.",
        "It does not have to be fast.",
        "You can send {it} at the end of the year.",
    ),
    calm_first=("I am in no hurry.",),
    asides=(
        "Call {phone} for questions.",
        "The {other} I bought before was nice.",
        "I visited {away} last week.",
        "My flatmate {friend} will open the door.",
        "Reference {code}.",
    ),
    closings=("Best wishes, {name}", "Thank you very much, {name}", "Yours truly, {name}"),
)

TEST_VOICE = Voice(
    greetings=("Good day,", "Hello there,", "Dear shop,", "Hi all,"),
    intros=(
        "{name} is my name.",
        "It's {name} again.",
        "I'm {name}, a regular customer.",
        "{name} writing to you.",
        "I'm {name}, based in {city}.",
        "It's {name} in {city}.",
    ),
    orders=(
        "I'd love to get {want}.",
        "Kindly prepare {want} for shipment.",
        "Next on our shopping list: {want}.",
        "I am after {want}.",
        "Count me in for {want}.",
        "Put {want} on my bill, please.",
        "What I need is {want}, nothing else.",
        "We would be glad to receive {want}.",
        "Let me have {want}, please.",
        "My choice is the {item}, and {count} will do.",
        "Of the {item} I will take {count}, of the {other} none.",
        "Forget the {other}, I'd rather have {want}.",
        "Would it be possible to have {want} sent to {city}?",
        "Our branch in {city} has asked for {want}.",
        "We are furnishing a flat in {city} and still lack {want}.",
        "A parcel with {want} should go to {name} in {city}.",
        "{name} in {city} has chosen {want}.",
        "For {name}: {want}, to be delivered in {city}.",
        "Mark {want} as sold to {name}.",
    ),
    places=(
        "The destination is {city}.",
        "Our studio in {city} takes the delivery.",
        "My address is in {city} these days.",
        "Drop the package off in {city}.",
        "You will find us in {city}.",
        "Since May I have lived in {city}, no longer in {away}.",
    ),
    urgent=(
        "Next week would already be too late.",
        "It has to leave your warehouse this afternoon.",
        "Our event begins in four hours.",
        "Please rush this through.",
        "We are out of stock and people are complaining.",
        "My train leaves at six tonight and I want {it} with me.",
        "Can a courier bring {it} within the hour?",
        "Overnight delivery, whatever it costs.",
        "The opening is tomorrow at eight.",
        "Speed matters more than price here.",
        "We are at a standstill until the delivery comes.",
        "Please pack {it} immediately.",
        "Today, not tomorrow!",
    ),
    urgent_first=("Time is very short.", "I need your help quickly."),
    calm=(
        "Ship at your leisure.",
        "We are in no rush at all.",
        "Some time in the next two months would be great.",
        "I won't be back before October.",
        "A slow and cheap delivery is all we need.",
        "It's just for next winter.",
        "The date really does not matter.",
        "You may take as long as you need.",
        "Our season begins in half a year.",
        "Let it come with the ordinary mail.",
    ),
    calm_first=("No pressure with this order.", "Here is something for later this year."),
    asides=(
        "You can reach me at {phone}.",
        "My booking code was {code}.",
        "Our {others} are still in good shape.",
        "I no longer fancy the {other}.",
        "{friend} from accounting will pay.",
        "The bill should reach our head office in {away}.",
        "I was in {away} when I saw your advert.",
        "On {day}s the gate is closed.",
        "My neighbour {friend} loves your shop.",
        "The first delivery had {few} {others} in it.",
    ),
    closings=(
        "Cheers, {name}",
        "Sincerely, {name}",
        "All the best, {name}",
        "With thanks, {name}",
        "Warm regards, {name}",
        "Greetings from {city}, {name}",
    ),
)

CHAT_VOICE = Voice(
    greetings=("yo", "heya", "hiya"),
    intros=("its {name}", "you know me, {name}", "{name} over here in {city}", "{name} on the line"),
    orders=(
        "{n}x {item} to {city} pls",
        "need {items}, {n} pcs, going to {city}",
        "can u get me {want}?",
        "any chance of {want}?",
        "gimme {want} thx",
        "so i've been eyeing that {item} of yours, make it {count}",
        "it's {items} we're missing, {n} to be exact",
        "thought about a {other} first but nah, {want} it is",
        "put {want} in a box and off to {city} it goes",
        "got {want} for me?",
        "ok so {want}, to {name}, {city}, that's all",
        "what do u charge for {want}? im buying",
    ),
    places=(
        "dropoff is {city}",
        "we're over in {city} btw",
        "{city} is where the van has to go",
        "used to be {away}, now it's {city} for parcels",
    ),
    urgent=(
        "asap!!",
        "gotta have {it} tonite",
        "tmrw latest",
        "boss is going mad, we've got zero",
        "clock is ticking, show's at 7 tonight",
        "someone bring {it} over right now pls",
        "customers r standing at the door already",
        "no way this can sit till next week",
    ),
    urgent_first=("big panic here", "super urgent one"),
    calm=(
        "whenever, really",
        "zero rush",
        "no stress, after the holidays is ok",
        "chill, i've got months",
        "take ur time lol",
        "im travelling till september so not before that",
        "cheapest post u got, dont care how long",
        "its for next years fair so relax",
    ),
    calm_first=("no biggie, just for sometime next month",),
    asides=(
        "my cell is {phone}",
        "ref {code}",
        "{others} are fine, still got loads",
        "dont bother with the {other}",
        "{friend} says hi",
        "was in {away} last week, lovely place",
        "im off on {day}s",
        "ignore the {few} {others} from my last mail",
    ),
    closings=("thx, {name}", "xx {name}", "ta, {name}", "name's {name} btw"),
    joins=(". ", ", ", "\n", " - "),
    capitals=False,
    typo_share=0.5,
)

FORMAL_VOICE = Voice(
    greetings=("Dear Sir or Madam,", "To whom it may concern,", "Ladies and gentlemen,"),
    intros=(
        "The undersigned, {name}, wishes to place an order.",
        "I write on behalf of {name}.",
        "I, {name}, resident in {city}, address you with a request.",
    ),
    orders=(
        "We hereby request the delivery of {want}.",
        "Regarding the {item} on page 12, we require a total of {many}.",
        "It is {want} that we wish to acquire.",
        "We hereby commission {want} for our premises in {city}.",
        "Having rejected the {other}, we have settled on {want}.",
        "Should {want} be available, kindly invoice us.",
        "You are asked to supply {want} to {name}, {city}.",
        "Our demand amounts to {want}.",
    ),
    places=(
        "Kindly direct the consignment to {city}.",
        "Our seat is no longer {away} but {city}.",
        "The consignee resides in {city}.",
    ),
    urgent=(
        "Delay is not an option.",
        "We must insist on dispatch within the day.",
        "Kindly expedite.",
        "Production halts tonight unless you deliver.",
        "The matter brooks no delay.",
    ),
    urgent_first=("Our situation is critical.",),
    calm=(
        "We are content to await your next scheduled shipment.",
        "There is no pressing need.",
        "Delivery during the coming quarter would suffice.",
        "Dispatch may follow at your convenience.",
    ),
    calm_first=("This request concerns the coming year only.",),
    asides=(
        "Our telephone: {phone}.",
        "Kindly address the invoice to our seat in {away}.",
        "File number {code} applies.",
        "The {few} {others} of last May were to our satisfaction.",
        "Our lawyer, {clerk}, has been informed.",
    ),
    closings=("Yours faithfully, {name}", "With the utmost respect, {name}", "Respectfully, {name} ({city})"),
    typo_share=0.2,
    full_names=1.0,
)

NOTE_VOICE = Voice(
    greetings=(),
    intros=("caller: {name}", "phone order by {name}", "msg from {name} ({city})"),
    orders=(
        "{name} ({city}) - {item} x{n}",
        "item {item}, amount {n}, town {city}, buyer {name}",
        "customer {name} rang from {city}, wants {want}",
        "counter sale: {name} takes {want}, parcel to {city}",
        "{item}, {n} pcs",
        "wants {want}, no {other}",
        "{item}: how many? {count}. where? {city}. who? {name}",
        "asked about {other} first, then took {want}",
    ),
    places=("ship to {city}", "goes to {city}, was {away} before", "town: {city}"),
    urgent=(
        "RUSH ORDER",
        "must go out on tonight's van",
        "customer very nervous, needs {it} for tomorrow's opening",
        "same day delivery promised",
    ),
    urgent_first=("!! rush job !!",),
    calm=(
        "no deadline given, customer has time",
        "goes with the usual Friday tour, not pressing",
        "customer on holiday for a month, hold until then",
        "slow post ok",
    ),
    calm_first=("low priority",),
    asides=(
        "tel {phone}",
        "old ticket {code}",
        "{friend} took the call",
        "had {few} {others} last time",
        "bill to {away} office",
    ),
    closings=("customer name {name}", "for {name}", "buyer = {name}"),
    joins=("; ", ". ", "\n", " / "),
    capitals=False,
    typo_share=0.3,
)
