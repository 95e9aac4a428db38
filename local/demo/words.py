"""Everyday Estonian words that the demo's grammar does not use.

The toy network is pre-trained on random strings of them, so that it learns the sounds of
the language from no sentence and no word of the demo.
"""

from __future__ import annotations

WORDS: tuple[str, ...] = tuple(
    """
    aasta aabits aadress aed aeg aeglane aeru aga ahi ahju ahven aidata ainult aisa ajakiri
    ajaleht ajalugu aju aken akna alati alev algus alla allikas alumine alus ametnik anda ankur
    andeks apteek arbuus arst aru arutama arve asi astuma asuma atlas au auk auto avama avatud
    bensiin betoon bussi buss diivan dollar
    ebaõnn edasi eesel eesti eesmärk ehitama ehk ehted elama elav elekter elevant
    elu ema enamasti enne ennast eraldi eriti erinev esitama ette ettevõte
    faas fakt film firma foto fänn
    gaas galerii gümnaasium
    haab haigla haige hakkama halb hall hambad hammas hani haned harjama hea heegeldama heli
    hele helge hiir hiiglane hiline hind hing hirm hirv hobune hoidma hoone hotell huul hulk
    hunt huvi huvitav hõbe hõim hõlpus hädaoht hääl häbi hüüdma hüpe hüva
    idee iga igav ihu iial iidne ilus inglane inimene istuma isik isu iva ise
    jaam jagama jahe jahu jalg jalgratas jaluta jook jooksma joon joonistama juba juht juhtuma
    julge jumal jutt juur juuksed jõgi jõud jõulud jää jäär jääb jälle järel järv jätma jänes
    kaamel kaasa kaart kaduma kael kaev kahju kajakas kala kalender kali kallas kallis kampsun
    kana kannatus kanep kapp karu karjuma kartul karv kasepuu kask kass kasu katus katki kauge
    kaunis kaup kauplus keel keegi keeld keerama keha kelder kerge keset kevad kiire kiik kile
    kindel king kinni kino kirg kiri kirik kirjutama kivi kleit klaas koer kodu koht kokk
    kollane konn kook kool koos koost korv kott kotkas kraan kreem krokodill kruus kuhu kuidas
    kukk kuld kulm kuma kunst kuningas kurb kurg kurk kusagil kuu kuub kuulama kuulus kuum kuusk
    kõht kõik kõne kõrge kõrv kõrval kõva käed käik käsi käsk käru köha köis
    küla küll külg küljes küsima küps küünal küüs küte
    laager laar laat laev laht lahke laine laisk lambad lammas laps laud lauluema lava lehm leht
    leidma lend lennuk lepp liblikas liha liiga liik liiv lill lind linn lipp lips lisama loeng
    loodus loom loomulik loss lugema lugu luik luku lumi luu luule lõbus lõhe lõhn lõik lõng lõpp
    lõvi läbi lähedal läks läikima läte lääts löök lööma lühike lüps lüli
    maa maailm maasikas madal maja magama magus majakas makk mantel mari marjad masin mees meel
    meelde meie mets metsas mererand meri mesi mesilane mess mida miks mingi mina mitte moos
    mootor mood moodne mune mure must muld mulle musi muuseum muutus mõis mõistma mõni mõte mõtlema
    mõõk mõõt mõru mägi mälu mäng mära märk märg märkama määr mööbel möödas möll müra müük müts
    münt müür
    naaber naeris naerma nael nahk naine nali nagu neid neiu neem neer nemad nina nii niit nimi
    nipp noor noot nool norra nuga nukk nurk nutma nõel nõges nõu nõid nõnda nõus nädal nägema
    nägu nälg näide näitama närv nöör nööp nüüd
    odav ohutu oja oktav olema oma onu ootama operatsioon orav org orkester osa oskama ots otsima
    otse ootus
    paat pael pada padi paber paha paju paks palav pall pank pann parem park part parv pea peal
    peegel peenar peet pehme pere perekond pesema pidama pidu pikk pilk pilet pill pilt
    pilv pind pirn pisar pliiats plaan poeg pood pool poiss politsei porgand port post pott prillid
    proov prügi puder pudel puhas puhkama pulk pungad punane puri puu puusärk puuvill põder põlema
    põld põll põlv põnev põrand põrsas põsk põud põõsas päev pähkel pärast pärl päts pääsema
    pääsuke pöial pöörama pöök püksid püha püstol püüdma
    raamat raba raha rahu rahvas raie rand raske raud rebane redel reis riided riik
    riis ring rinne rist roheline roog roos roosa rong rott ruum rukis rumal rõdu rõngas rõõm
    rõõmus rõivas rähn räim rääkima rätik rööbas röövel rühm rüütel rüüpama
    saabas saal saama saar saatma sai saksa salat sall samm sammal sarv seal see
    sebra seen seep segama sein selge selg seltskond sepp sibul siga siil sild sile silm sina
    sinep sinine sink sinna siis siin sirel sirge soo sool soolane soov sopp sulg suhkur suit
    sukk summa suu suur suusk suvi sõber sõda sõit sõna sõnum sõrm sõstar sõudma säde sääsk sääst
    särk säng söök sööma söe süda sügav sügis sündima süsi süüa süü
    šampoon šveits šarm šeff šokk šnitsel dušš guašš finiš tušš marsruut šahh
    taat taevas taim tala taldrik talu talv tamm tants tark tare tasakaal tass tasu tee teema
    teekond teener tegema telk tema teravili terav tere tervis tigu tiib tiiger tikk
    tiik tippida toit tool tohter toom tore toru tosin tuba tuhat tuhk tulbid tume tund tundma
    tunnel turg tuvi tõde tõsine tõus tõlge tõmbama tõbi täht tähtis täis täpne täpselt tädi
    tänav tööline töö tööpäev tühi tükk tütar tüdruk türklane
    uba udu uhke ujuma uks uni unistus unustama uss usin uskuma usaldus uudis uus uur
    vaal vaade vaas vaatama vaba vabrik vaene vaev vaikne vaim valge valgus vald vale valima
    valmis vana vanaema vanker vann vara varas varvas vasar vasikas vask vastus veel veski vein
    verbid vesi viga vili viiul vikerkaar viimane viin villa vool voodi vorst vund võti võit võim
    võsa võtma võrk võru võõras väga väike väljak värav värske värv väsinud vöö vürts
    õde õpetaja õpik õppima õlg õli õlu õhk õhuke õied õis õng õnn õnnelik õrn õu õudne õige õlest
    äike äkki ämber äpp ärkama äädikas ääres
    öö öökull ööbik
    ühine ülikool ümber ümmargune ürgne üle ülem ülikond
    žanr žilett žestid žürii garaaž bagaaž massaaž reportaaž džungel džemper džuudo džinn montaaž
    """.split()
)
