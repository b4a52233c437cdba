"""The subjects of the pictures, by name and clearest first, and their styles and backgrounds.

A model of ``n`` subjects takes the first ``n``, so the order is by how surely a person names the picture at
64 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from paramerge.errors import UsageError

__all__ = ["BACKGROUNDS", "STYLES", "SUBJECTS", "Subject", "first_subjects"]

STYLES = ("noto", "twemoji", "fluent")
"""The styles, by the names that captions use."""

BACKGROUNDS = {
    "white": (255, 255, 255),
    "red": (226, 74, 66),
    "orange": (245, 158, 62),
    "yellow": (250, 219, 92),
    "green": (104, 178, 98),
    "blue": (84, 148, 222),
    "purple": (150, 108, 196),
    "pink": (244, 168, 198),
    "gray": (150, 154, 160),
    "black": (28, 28, 32),
}
"""The background colours, by the names that captions use."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to draw: its ``name`` in captions and the emoji's ``code`` in the data (its short name)."""

    name: str
    code: str
    plural: bool = False

    @property
    def phrase(self) -> str:
        """The name with its article: ``an apple``, ``grapes``."""
        if self.plural:
            return self.name
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


# name, or name:code where the data has another name; * marks plurals, _ is a space
_TABLE = """
dog cat pizza apple heart house car tree:evergreen_tree sun:sun_with_face flower:sunflower
fish:tropical_fish penguin strawberry banana rocket guitar frog star hamburger pumpkin:jack_o_lantern pig
mushroom cactus umbrella:umbrella_with_rain_drops cake:birthday doughnut ghost robot:robot_face snowman
crown bee butterfly octopus whale panda:panda_face lion:lion_face fox:fox_face bear rabbit cow:cow koala
watermelon lemon pineapple cherries* carrot bread:bread cookie ice_cream:icecream coffee balloon gift
soccer_ball:soccer basketball clock:alarm_clock key bell book:closed_book lamp:bulb fire drop:droplet cloud
moon:crescent_moon rainbow snowflake skull alien trophy airplane helicopter bus bicycle:bike
truck:fire_engine taxi tractor train:steam_locomotive boat anchor castle:european_castle tent volcano
palm_tree tulip rose clover:four_leaf_clover maple_leaf turtle snail crab shark dolphin elephant
giraffe:giraffe_face zebra:zebra_face unicorn:unicorn_face dinosaur:t-rex dragon snake owl duck chicken
parrot flamingo hedgehog mouse tiger monkey:monkey_face wolf horse spider ladybug lobster squid grapes* pear
peach orange:tangerine kiwi:kiwifruit coconut avocado eggplant corn pepper:hot_pepper broccoli tomato potato
garlic cheese:cheese_wedge egg:fried_egg bacon fries* hot_dog:hotdog taco burrito sushi croissant pretzel
waffle cupcake pie candy lollipop chocolate:chocolate_bar popcorn honey:honey_pot teapot wine:wine_glass
beer cocktail:tropical_drink milk:glass_of_milk spoon knife:hocho hat:tophat shoe:athletic_shoe boot dress
shirt jeans* necktie sock:socks glasses:eyeglasses* ring gem backpack:school_satchel purse lipstick camera
television:tv computer phone:iphone radio microphone headphones* trumpet violin drum:drum_with_drumsticks
piano:musical_keyboard saxophone paint:art pencil:pencil2 scissors* hammer axe wrench magnet bomb shield
sword:dagger_knife candle lock broom basket toilet bathtub bed chair door window:window mirror teddy_bear
telescope microscope syringe pill baseball football tennis_ball:tennis volleyball bowling_ball:bowling dart
boxing_glove kite skateboard sled medal:sports_medal dice:game_die puzzle:jigsaw joystick crystal_ball
wand:magic_wand globe:earth_africa planet:ringed_planet comet satellite lightning:zap tornado wave:ocean
mountain:mount_fuji island:desert_island bridge:bridge_at_night church factory hospital ferris_wheel
circus_tent fountain statue:statue_of_liberty traffic_light fuel_pump:fuelpump scooter:motor_scooter
ambulance police_car ship:passenger_ship canoe parachute ufo:flying_saucer hourglass watch
envelope:love_letter package:package mailbox newspaper coin money:dollar calendar:date pin:pushpin paperclip
ruler:straight_ruler trash_can:wastebasket battery plug:electric_plug flashlight scroll map:world_map
compass hook toolbox ladder bucket soap toothbrush sponge
"""


def _read(entry: str) -> Subject:
    plural = entry.endswith("*")
    name, _, code = entry.removesuffix("*").partition(":")
    return Subject(name.replace("_", " "), code or name, plural)


SUBJECTS = tuple(_read(entry) for entry in _TABLE.split())
"""All subjects that have a name here, clearest first."""


def first_subjects(count: int) -> tuple[Subject, ...]:
    """The first ``count`` subjects.

    Raises
    ------
    UsageError
        There are not so many, or too few are asked for to combine and hold out any.
    """
    if not 8 <= count <= len(SUBJECTS):
        raise UsageError(
            "the model cannot have this many subjects",
            where="--subjects",
            expected=f"8 to {len(SUBJECTS)}",
            found=count,
        )
    return SUBJECTS[:count]
