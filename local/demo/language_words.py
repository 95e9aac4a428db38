"""Common words of the languages of the synthetic corpus of many languages."""

from __future__ import annotations

ESTONIAN: tuple[str, ...] = tuple(
    """
    aasta aeg ahi aken alati ameti andma armas aru asi auto edasi ehitama elama ema enne esimene
    haige hakkama halb hammas hea hein hind hobune hommik homme huvi häda hääl ilm ilus inimene isa
    ja jalg jaoks jooksma juba jutt jõgi jää järv kaasa kahju kaks kala kallas karu kass kaunis
    keel kell kevad kiire kinni kiri kivi kogu koht kolm kool kord kuidas kuld kuulama kõik kõrge
    käsi küla küsima laev laine lapsed laul leib lill lind linn loom lumi lõuna lähedal läheb maa
    maja meri mets midagi mina mitte mulle must mõni mõte mägi mäng naine neli nimi noor nägema
    näitama olema oma onu ootama osa ostma otse paber paha palju peab pikk poeg pood puhas punane
    puu põld päev päike raamat raha rahvas ring roheline rõõm saama saar sada seal seisma selge
    sina sinine soe sõber sõit sõna süda sügis taevas tahtma talv tark tee tere tihti tuba tuli
    tund tuul täna töö uks uus vaba vaikne valge vana vesi viis vihm vend või väike väga õde õhtu
    õpetaja õun öö üks üle ütlema
    """.split()
)

LATVIAN: tuple[str, ...] = tuple(
    """
    acs aka akmens ap arī asins ass aste atkal atnākt auksts avots bagāts balss balts bads bērns
    bet bija brālis brīvs caur cauri ceļš cik cilvēks cits dārgs dārzs darbs daudz debess deviņi
    diena dievs dēls divi doma draugs drīz dzert dziesma dzimt dzīve es egle elpa ezers gads gaiss
    galds galva gaļa gara garš grāmata griba grūti iela iet iekšā ilgi jauns jaut jā jūra jūs kaut
    kājas kalns kaķis klusi kas katrs kāpēc koks krasts krāsa kungs kur ķert ķirsis labi lācis
    laiks lapa lauks liels lietus logs loti māja maize maksāt māsa māte mazs mežs migla mīļš mums
    mūžs nakts nams naudu ne nekad nest nost nākt ņemt otrs pats pavasaris pēc pieci piens pilsēta
    pirmais pļava prieks puisis putns rīts roka ruden runāt saule sarkans saņemt sēdēt sestais
    sirds skaists skola skriet slikti sniegs soli spēks spēle stāsts suns šis šodien šķiet tagad
    taisns tālu tauta tēvs tikai trīs tumšs turēt uguns un upe ūdens vaļā vārds vasara vecs vējš
    viens viesis visi vilks zaļš zeme ziema zils zināt zirgs zivs zvaigzne žēl
    """.split()
)

GERMAN: tuple[str, ...] = tuple(
    """
    abend acht alle alt arbeit arzt auch auf auge baum beide bein berg bett bezahlen bild blau
    bleiben blume brauchen breit brief bringen brot bruder brücke buch bäcker chor dach danke dein
    denken deutsch dunkel durch ecke eins eis ende essen euch fahren falsch familie fenster feuer
    finden fisch fleisch fliegen fluss frage frau freund frisch früh fuchs fünf fürchten garten
    geben gehen geld gestern gesicht glauben glück groß grün gut haben hals haus heiß helfen herz
    heute himmel hoch holz hund hören hübsch ich immer jahr jetzt junge jäger kalt kaufen kirche
    klein kochen kommen kopf kreis kuchen kurz köpfe küche lachen land langsam laufen leicht leute
    licht lieben löwe machen mädchen mensch messer milch mittag mond morgen mutter möchte müde
    nacht name neu nicht nichts nächste ochse ohne oft pferd pfeffer platz rechts regen reise rot
    rufen sache sagen salz schaf scharf schiff schlafen schnee schnell schule schwarz schwer
    schwester schön sechs sehen seife sieben singen sommer sonne sprechen stadt stein stern straße
    stunde stück süß tag tausend teuer tisch tochter traum trinken tür uhr vater viel vier vogel
    voll wald wasser weg weich wein weiß welt wenig wetter wind winter wissen woche wohnen wolke
    wunsch zahl zehn zeit ziehen zimmer zucker zug zurück zusammen zwei zwölf über
    """.split()
)

SPANISH: tuple[str, ...] = tuple(
    """
    abajo abierto abuelo aceite agua ahora aire algo allí alto amigo amarillo andar antes aquel año
    azul bailar bajo barco beber bien blanco boca bosque brazo bueno buscar caballo cabeza cada
    caja calle calor cama camino campo cantar cara carne carta casa cerca cerrar cielo cien cinco
    ciudad claro coche cocina comer correr cosa creer cuatro cuello cuerpo cuidado chico dar deber
    decir dedo dejar derecho desde diez dinero doce dormir dulce edad ejemplo ella enero entre
    escribir escuela españa espejo estrella feliz fiesta flor frío fuego fuerte gato gente grande
    gris guapo guerra guitarra hablar hacer hambre hasta hermano hija hijo hoja hombre hora hoy
    huevo iglesia igual invierno isla jamás jardín joven juego jueves jugar junto lado largo leche
    lejos lengua libro llamar llave llegar lleno lluvia luego lugar luz madre mano mañana mar mejor
    mesa mirar mitad mucho mujer mundo nada naranja negro nieve niño noche nombre nosotros nube
    nuevo ocho ojo oreja oro otoño oveja padre pagar pájaro palabra pan papel pared pequeño perro
    pescado piedra pierna plaza poco pollo primero pueblo puerta queso quien quince quizás rápido
    reloj rey río rojo ropa saber sal sangre seis siempre siete silla sobre sol sombrero sueño
    tarde tiempo tienda tierra todo trabajo traje tres triste uva vaca valle vecino veinte vender
    ventana verano verde viaje vida viejo viento vino voz ya zapato zorro
    """.split()
)
