"""Sentences of mixed lengths, as a batch of real text has them: short and long ones in no order. Written for this."""

MIXED = (
    "It rained.",
    "The ferry leaves at noon and comes back at six, unless the wind turns to the north.",
    "Who has the key?",
    "She opened the window, looked for a long while at the roofs across the street, where two cats had fallen asleep "
    "in the last of the sun, and decided that the letter could wait until the morning.",
    "Bread, butter and a little salt.",
    "The bridge was built of stone that came down the river on rafts.",
    "Please wipe your shoes.",
    "In the spring of that year the council voted to plant a lime tree in front of every house on the main road, and "
    "to pay for the water out of the money that had been kept for a new clock.",
    "Nobody had asked him.",
    "We walked until the path ended at a gate with no handle.",
    "The recipe asks for three eggs, a cup of flour and more patience than I have on a weekday.",
    "Come in, the kettle is on.",
    "Although the museum closes at five, the guard at the side door, who has worked there for thirty years, often "
    "lets students stay until he has made his last round.",
    "A train was late.",
    "His grandfather repaired clocks, and so the house was never quiet.",
    "The soil here is thin and full of stones, but beans grow in it, and so do onions, if someone carries water up "
    "the hill every evening from June until the end of August.",
    "Turn left at the mill.",
    "They counted the votes twice and found the same result both times.",
    "My sister keeps bees.",
    "The report was short, and every number in it was wrong.",
    "When the power failed, the orchestra played on from memory for eleven minutes, and most of the audience did not "
    "notice that the lamps on the music stands had gone out as well.",
    "Snow fell on the harbour.",
    "He bought the cheaper paint and regretted it before the second wall was dry.",
    "There is a small shop behind the station that sells nothing but buttons.",
    "Thank you for the plums.",
    "The teacher asked each of the children to bring one leaf, and by Friday there were leaves on every window, on "
    "the doors of the cupboards and even on the ceiling, where only the tallest boy could have put them.",
    "Mind the step.",
    "A good map shows where the marsh begins.",
    "Since the new road was opened, hardly anyone stops in the village, and the inn has become a place where people "
    "live.",
    "Her answer surprised everyone at the table, and perhaps herself most of all.",
    "The dog knows the postman.",
    "It takes a day to walk around the lake and a week to row across it, as the fishermen say, who do neither.",
    "We ran out of chalk.",
    "The ship carried tea, copper, two hundred bolts of cotton, a piano that belonged to the captain's wife, and a "
    "crate of oranges from which the cook gave one to each sailor on Sundays as long as they lasted.",
    "Keep the receipt.",
    "The doctor listened, nodded and wrote down a single word.",
    "On clear nights you can see the lighthouse from the kitchen, a slow white blink above the line of the dunes.",
    "Apples keep longer in the cellar.",
    "The court decided that the fence had stood for so many years without complaint that nobody could now be made to "
    "take it down, whatever the old plan of the garden said.",
    "Is this seat free?",
    "The painter mixed a green that none of us had seen before.",
    "After dinner the uncles argued about football, then about the war, then about the price of hay, and at midnight "
    "they sang together as though there had never been any argument at all.",
    "Close the shutters before the storm.",
    "The library lends umbrellas, too.",
    "He learned to swim at sixty, in a cold lake, from a boy of nine who charged him a coin for every lesson.",
    "Two and two make four.",
    "The glass is made from sand that is washed, dried, melted at a heat which would bend iron, and then left to cool"
    " so slowly that the furnace needs three days before anyone may open its door.",
    "Nothing moved in the valley but the smoke of one chimney.",
    "I forgot your name.",
    "The committee will meet on Tuesday, provided that the heating has been repaired by then.",
    "Owls hunt without a sound.",
    "As soon as the tide was low enough they waded out to the island with the baskets on their heads, filled them "
    "with mussels, and were back on the beach, wet to the knees and laughing, before the water turned.",
    "The lift is out of order.",
    "A letter arrived with no stamp and no sender, and inside there was a pressed flower.",
    "Every bell in the city rang at once.",
    "She speaks four languages, reads six, and complains in all of them about the coffee.",
    "The young engineer explained that the tower did not lean because of the wind, as the guide books claimed, but "
    "because one corner stood on clay, which gives way a little every time that the river rises.",
    "Wait for me at the corner.",
    "His coat had lost its buttons one by one, and he could say where each of them lay.",
    "The market begins before sunrise.",
    "Between the orchard and the wall there is a strip of grass where, on warm evenings, the hedgehogs come out to "
    "look for snails while the household sits on the steps and pretends not to watch.",
    "Lemons are sour.",
    "The choir needs two more tenors, or one who sings very loudly.",
    "What the traveller remembered best of the capital was neither the palace nor the famous gardens but a baker who,"
    " when he heard that it was her birthday, put a candle into a roll, lit it, and made the whole queue sing.",
)
