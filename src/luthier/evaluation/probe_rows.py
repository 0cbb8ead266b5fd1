"""The questions and texts of the general-ability probe, written for Luthier.

They ask for what any small language model has seen often, so that a loss shows; they rank no models.
"""

from __future__ import annotations

QUESTIONS: tuple[tuple[str, ...], ...] = (
    # Question, right answer, three wrong ones. Topics follow each other, so that any beginning is mixed.
    ("What is the capital of France?", "Paris", "Madrid", "Berlin", "Rome"),
    ("What is 7 plus 5?", "12", "11", "13", "10"),
    ("What is the opposite of hot?", "cold", "tall", "heavy", "loud"),
    ("What gas do plants take in from the air?", "carbon dioxide", "helium", "oxygen", "neon"),
    ("How many days are there in a week?", "seven", "five", "nine", "ten"),
    ("What is used to cut paper?", "scissors", "a spoon", "a pillow", "a cup"),
    ("In Python, which word begins a function?", "def", "fun", "begin", "loop"),
    ("Who wrote Hamlet?", "William Shakespeare", "Isaac Newton", "Albert Einstein", "Karl Marx"),
    ("The plural of child is", "children", "childs", "childes", "childer"),
    ("What does water become when it freezes?", "ice", "steam", "sand", "oil"),
    ("What is the largest ocean?", "the Pacific Ocean", "the Arctic Ocean", "the Red Sea", "the Baltic Sea"),
    ("What is 9 times 3?", "27", "21", "24", "36"),
    ("Which animal barks?", "a dog", "a cat", "a cow", "a duck"),
    ("Which planet do we live on?", "Earth", "Mars", "Venus", "Saturn"),
    ("How many months are there in a year?", "twelve", "ten", "eight", "twenty"),
    ("Where do people go to borrow books?", "a library", "a bakery", "a garage", "a bank"),
    ("Which of these is a programming language?", "Java", "Excel sheet", "Bluetooth", "Pixel"),
    ("Who was the first president of the United States?", "George Washington", "Abraham Lincoln",
     "John Kennedy", "Thomas Edison"),
    ("The past tense of go is", "went", "goed", "gone to", "going"),
    ("What force pulls things to the ground?", "gravity", "sound", "heat", "light"),
    ("On which continent is Egypt?", "Africa", "Europe", "Asia", "Australia"),
    ("What is half of 50?", "25", "20", "15", "30"),
    ("What do bees make?", "honey", "milk", "wool", "silk"),
    ("What organ pumps blood?", "the heart", "the liver", "the stomach", "the skin"),
    ("Which season comes after spring?", "summer", "winter", "autumn", "night"),
    ("If it rains, what keeps you dry?", "an umbrella", "a fork", "a candle", "a mirror"),
    ("What does HTML describe?", "web pages", "recipes", "engines", "songs"),
    ("What is the capital of Japan?", "Tokyo", "Seoul", "Beijing", "Bangkok"),
    ("A word that means the same as big is", "large", "small", "quick", "thin"),
    ("What is the chemical formula of water?", "H2O", "CO2", "NaCl", "O3"),
    ("Which country has the city of Rome?", "Italy", "Spain", "Greece", "Norway"),
    ("What is 100 minus 1?", "99", "90", "101", "98"),
    ("How many legs has a spider?", "eight", "six", "four", "ten"),
    ("What do we breathe to live?", "oxygen", "carbon", "iron", "smoke"),
    ("Which day comes after Monday?", "Tuesday", "Sunday", "Friday", "Thursday"),
    ("What do you use to open a locked door?", "a key", "a hat", "a book", "a shoe"),
    ("Which number is even?", "4", "3", "7", "9"),
    ("In which language is guten Morgen a greeting?", "German", "French", "Spanish", "Chinese"),
    ("The opposite of always is", "never", "often", "soon", "again"),
    ("What do we call a baby cat?", "a kitten", "a puppy", "a calf", "a chick"),
    ("Which river flows through London?", "the Thames", "the Nile", "the Rhine", "the Amazon"),
    ("How many minutes are there in an hour?", "sixty", "thirty", "ninety", "hundred"),
    ("What is the colour of grass?", "green", "blue", "pink", "black"),
    ("Which star is nearest to the Earth?", "the Sun", "the Moon", "Mars", "Polaris"),
    ("If Anna is taller than Ben, who is shorter?", "Ben", "Anna", "both", "neither"),
    ("What do you wear on your feet?", "shoes", "gloves", "a hat", "a scarf"),
    ("What is the square root of 16?", "4", "8", "2", "6"),
    ("In which year did the Second World War end?", "1945", "1918", "1969", "1815"),
)  # fmt: skip

TEXTS: tuple[str, ...] = (
    "The sun had not yet risen when the fishermen pushed their boats into the water. They spoke little, "
    "for each of them knew what had to be done, and the sea was calm.",
    "Water boils at a lower temperature in the mountains than at the sea, because the pressure of the air "
    "is lower there. This is why food takes longer to cook.",
    "To make the soup, cut two onions and a carrot into small pieces, fry them in a little oil until they "
    "are soft, then add a litre of water and a pinch of salt.",
    "Dear Mr Miller, thank you for your letter of last week. I am sorry to say that the book you asked for "
    "is no longer in print, but we may be able to find a used copy.",
    "The city council decided on Tuesday to close the old bridge for repairs. Traffic will be led through "
    "the northern part of the town until the end of the year.",
    "A database stores information in tables. Each table has rows and columns, and each row has a key that "
    "tells it apart from every other row in the same table.",
    "In the early days of the railway many people were afraid to travel by train. They believed that the "
    "human body could not bear a speed of more than thirty miles an hour.",
    "def average(numbers):\n    total = 0\n    for number in numbers:\n        total = total + number\n"
    "    return total / len(numbers)\n",
    "My grandmother used to say that a house without books is like a room without windows. She read every "
    "evening, and when her eyes grew weak she asked us to read to her.",
    "Vaccines teach the immune system to recognise a germ before it has caused any disease. When the germ "
    "comes later, the body can answer quickly and in most cases prevents the illness.",
    "The law says that a contract is valid only if both sides have agreed to it freely. If one of them was "
    "deceived, a court can declare that it never existed.",
    "If a train leaves the station at nine o'clock and travels at sixty miles an hour, it will have gone "
    "one hundred and twenty miles by eleven o'clock.",
)
