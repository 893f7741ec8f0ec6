"""The thresholds of the matcher, each with its unit and its reason.  Needs neither cv2 nor numpy, so that `--help` stays quick."""

from __future__ import annotations

from pydantic import Field

from cropreg.settings import Settings


class MatcherSettings(Settings):
    """How a crop is searched for, verified and refined."""

    lowest_scale: float = Field(0.12, gt=0, description="crop px per original px; smaller exports keep too little to verify")
    highest_scale: float = Field(1.9, gt=1, description="crop px per original px; nobody enlarges a crop much more")
    max_angle_deg: float = Field(
        16.0, ge=0, lt=45, description="degrees; straightening turns by a few, 15 is the most that is promised"
    )
    max_pixels: int = Field(400_000_000, gt=0, description="px; larger pictures are refused before they are decoded")

    template_px: int = Field(
        44, ge=16, description="px; long side of the template of the first search: its peak is unique, its cost nil"
    )
    finer_template_px: int = Field(160, ge=16, description="px; the same once that has failed: thin lines are lost in fewer")
    alone_share: float = Field(
        0.85, gt=0, lt=1, description="the second peak's correlation over the first's there, above which neither stands out"
    )
    search_peaks: int = Field(
        4, ge=1, description="peaks followed per correlation; the right one was among 4 whenever it was a peak at all"
    )
    clear_ncc: float = Field(0.75, description="correlation of a peak that is followed at once even if it is not the first")
    peak_ncc: float = Field(
        0.98,
        description="correlation of a peak that is rather believed than a registration which leads more than two of its pixels away and "
        "fits worse: a crop of 81 px that shows two edges has 0.999",
    )
    close_ncc: float = Field(0.1, description="such a peak's distance from the first; the right one was first in 128 of 129 crops")
    smooth_px: float = Field(
        0.9, gt=0, description="plane px; Gaussian before registering: hides the grid of the reduction (0.07 px error)"
    )
    band_px: int = Field(
        15, ge=3, description="plane px; width of the mean that is taken away: vignettes are wider, detail is narrower"
    )
    coarse_band_px: int = Field(
        5, ge=3, description="plane px; the least such width on coarse planes, an eighth of the crop's long side"
    )
    iterations: int = Field(20, ge=1, description="Lucas-Kanade steps a level; 4 to 6 suffice when the start is within 2 px")
    num_features: int = Field(400, ge=50, description="ORB keypoints a picture; 300 to 700 find the same crops within 2 in 164")
    enlarged_scale: float = Field(
        1.05,
        description="crop px per original px above which scales are swept only when no lower one fits: they cost as much as all others",
    )
    sweep_ratio: float = Field(
        1.06, gt=1, description="step of the sweep of scales; a template of 40 px is off by 0.6 px at the most"
    )
    sweep_template_px: int = Field(40, ge=8, description="px; long side of the template in the sweep of scales")
    sweep_band_px: int = Field(9, ge=3, description="px; width of the mean taken away there: tiny crops differ in fine detail only")

    most_tiles: int = Field(8, ge=1, description="tiles a side; small enough to see a local difference, large enough to correlate")
    least_tile_px: int = Field(10, ge=4, description="plane px; tiles smaller than this correlate by chance")
    noise: float = Field(
        0.4, gt=0, description="grey levels; a tile with less band-passed deviation has no texture; rounding makes 0.1 to 0.3"
    )
    weak: float = Field(
        0.12, ge=0, lt=1, description="share of the crop's deviation; weaker tiles drown in JPEG noise at low quality"
    )
    blank: float = Field(0.4, ge=0, description="grey levels; a crop with less deviation shows nothing")
    flat_texture: float = Field(
        1.0, ge=0, description="grey levels; band-passed deviation below which a crop not found counts as flat"
    )
    faint_texture: float = Field(
        3.0, ge=0, description="grey levels; a large crop with more band-passed deviation is found at 1/8 or nowhere"
    )
    features_long_side_px: int = Field(
        240, ge=100, description="px; long side of the pictures whose keypoints are compared; 320 px find 1 more of 164 crops"
    )

    sure_median: float = Field(0.93, description="median NCC of textured tiles that ends the search; wrong pairs reach 0.6")
    sure_low: float = Field(0.80, description="20% quantile of the same; wrong pairs reach 0.15")
    calm_low: float = Field(
        0.9,
        description="the same below which full-size windows are looked at even if nothing moves: of 268 right crops that needed none "
        "2 had less, half of the pages that only look alike",
    )
    sure_tiles: int = Field(6, description="textured tiles without which the search goes on: fewer agree by chance")
    fair_median: float = Field(0.72, description="median NCC of textured tiles below which nothing was found")
    even_median: float = Field(
        0.6, description="the same where many tiles agree about equally well; wrong pairs reach 0.61 unevenly"
    )
    even_low: float = Field(0.45, description="20% quantile wanted then; wrong pairs with so many tiles reached 0.35")
    even_tiles: int = Field(16, description="textured tiles wanted then")
    whole_band: float = Field(0.95, description="band-passed NCC of the whole that counts although its tiles do not agree")
    whole_score: float = Field(0.99, description="plain NCC of the whole wanted as well; dark pictures at JPEG 40 reach 1.000")
    fair_low: float = Field(0.3, description="20% quantile of the same; right places of 391 crops had 0.57 or more")
    resized_low: float = Field(
        0.6,
        description="the same, wanted of a resized crop whose tiles do not convince and that no three windows confirm: "
        "straight lines fit at any scale; a wrong place had 0.45, right ones 0.76 and more but for one with 0.51",
    )
    fair_tiles: int = Field(1, description="textured tiles below which nothing was found")
    most_outside_px: float = Field(
        2.0,
        gt=0,
        description="original px by which a crop that is found may reach beyond the original: less may be the place's error",
    )
    least_inside: float = Field(0.97, description="share of the crop's sides inside the original; the fit may be off by a little")
    overlap: float = Field(0.985, description="the crop's sides over the original's, from which the lowest possible scale follows")
    grain_share: float = Field(0.6, description="correlation of grain elsewhere over the best, above which it is a pattern")
    grain_clear: float = Field(
        0.35,
        gt=0,
        description="difference of the two in Fisher's z from which grain on a pattern tells all the same: that of slats of wood is 0.4 "
        "to 2, JPEG's blocks on nothing fit everywhere alike",
    )
    grain_ncc: float = Field(
        0.15,
        description="correlation of a full-size window's grain; JPEG 75 leaves 0.28 of faint grain, the best place elsewhere had 0.05",
    )
    grain_agreeing: float = Field(
        0.75, description="share of windows that must show it at the same pixel; the others may be clipped or painted over"
    )
    small_px: int = Field(120, description="plane px; a crop smaller than this at 1/8 is looked at again at more resolution")
    tiny_px: int = Field(
        48,
        description="px of the original's plane; a crop smaller than this that was not found is looked for at more resolution, too: "
        "one in 270 is found there",
    )
    many_tiles: int = Field(30, description="textured tiles that judge even such a crop, if they convince")
    closer_px: int = Field(256, description="working px; long side of the crop in that closer look: enough to judge by")
    finest_px: int = Field(800, description="working px; the same where windows do not tell the edges of a resized crop")
    most_closer: int = Field(3, ge=1, description="candidates of one search looked at so, the best first")
    closer_ncc: float = Field(
        0.5,
        description="median tile NCC at 1/8 that earns a closer look, and band-passed NCC there: right places reach 0.9 even when tiny",
    )
    least_ncc: float = Field(0.35, description="band-passed NCC after registering at any level, below which a candidate is dropped")
    shift_ncc: float = Field(0.5, description="the same at coarse levels for a crop that was only cut out; right ones reach 0.8")
    tone_ncc: float = Field(
        0.65,
        description="NCC of the plain tones of a turned crop below which it is not there; right ones reach 0.99, a dark one 0.73",
    )
    tone_iterations: int = Field(12, ge=1, description="steps by which tones are followed from afar")
    tone_px: int = Field(48, ge=16, description="plane px; long side of a crop below which its tones lead anywhere")
    first_followed: int = Field(
        3, ge=1, description="candidates judged before the others are followed; the right one was among them for 30 of 33 crops"
    )
    sweep_peaks: int = Field(
        16, description="candidates followed after the sweep of scales; the right one was among them in 44 of 49 tiny crops"
    )
    most_mirages: int = Field(
        2, ge=0, description="places given up for the next best since full-size windows saw something else there"
    )
    rival_share: float = Field(0.8, description="share of the place's own correlation that makes another peak a rival")
    rival_apart_px: int = Field(2, description="plane px; nearer peaks are the place itself")
    rival_gap: float = Field(0.02, description="plain NCC below the place's own, within which another peak is a rival, too")
    rival_look: float = Field(8.0, description="a rival's unexplained share over the place's, below which full-size windows decide")
    rival_coarse: float = Field(
        0.02,
        description="unexplained share added to both at the scale of the search, where a rival's grid lies off by half a pixel",
    )
    rival_ratio: float = Field(1.6, gt=1, description="a rival's squared rest over the place's, below which both fit equally well")
    telling_rest: float = Field(
        0.5,
        gt=0,
        description="unexplained share of a full-size window at its best place, above which it does not choose between places",
    )
    least_gap: float = Field(-0.01, description="a place whose plain NCC is exceeded elsewhere by more is not to be trusted")
    repeat_px: int = Field(32, ge=8, description="plane px; side of the part that is compared with its own surroundings")
    repeat_ncc: float = Field(0.5, description="correlation with the surroundings from which a texture counts as repeating")
    beside_ncc: float = Field(
        0.75, description="the same from which the place beside, where it repeats itself, is registered: noise takes a tenth"
    )
    fair_band: float = Field(0.55, description="band-passed NCC below which nothing was found")

    slope_px: float = Field(
        0.04,
        gt=0,
        description="original px; predicted error above which is asked whether slopes tell the place in all directions; it"
        " is where few windows stand for the place, too",
    )
    least_slope: float = Field(
        0.3,
        description="correlation of slopes along the direction in which the crop has least of them, below which nothing tells where along "
        "it the crop lies: wrong places of crops of 150 px and more had 0.03 at most, right ones 0.36 and more but for pure noise",
    )
    least_slope_small: float = Field(
        0.6,
        description="the same for small crops, in which noise correlates by chance: of 860 that were found 24 had less, 14 of these lay "
        "elsewhere and four were exact",
    )
    slope_small_px: int = Field(100, description="px; long side of such a crop")
    repair: float = Field(
        0.01, description="relative error of the scale at which the crop was resampled, above which that is done again"
    )
    kept_scale: float = Field(0.002, description="scales nearer to 1 than this were kept, for nobody resizes by two thousandths")
    kept_angle_deg: float = Field(0.05, description="degrees; smaller turns are none")
    certain_px: float = Field(0.06, description="original px; predicted error up to which rounding to whole pixels is safe at 1/8")
    certain_part: float = Field(
        0.25,
        description="px from a whole number up to which rounding is safe at 1/8; pages of text are off by 0.3 px, one in 150 by 0.7",
    )
    certain_drift_px: float = Field(
        0.4,
        description="original px; common wish of the tiles up to which rounding is safe: 435 true crops reach 0.35, one wrong by 1 px 0.9",
    )
    loose_px: float = Field(
        0.04, description="crop px; predicted error of a resized crop above which more resolution is asked; errors reach 8 times it"
    )
    unsure_px: float = Field(
        0.1, description="crop px; the same above which a place that no windows confirm is not found but doubtful"
    )
    free_gain: float = Field(1.3, gt=1, description="unexplained share with scale 1 over that with any scale, below which 1 it is")
    free_gain_exact: float = Field(
        3.0, gt=1, description="the same where the free scale and angle are those of an uncut crop anyway"
    )
    odd_aspect_px: float = Field(
        0.75,
        gt=0,
        description="crop px by which two scales may lengthen the shorter side before windows must tell: rounding does by 0.25 at most",
    )
    telling_spread: float = Field(
        0.15,
        gt=0,
        description="share of the crop by which tiles must be spread in both directions to tell two scales; evenly they are by 0.29",
    )
    most_kept_scale: float = Field(0.03, description="the same for crops whose scale could hardly be seen")
    most_kept_angle_deg: float = Field(1.0, description="degrees; the same for the angle")
    flat_px: float = Field(
        0.4, description="original px; a turn or stretch that moves edges by less than this, as the tiles tell, is none"
    )
    leaning_px: float = Field(
        1.0, gt=0, description="original px; a turn or stretch that moves edges by more than this, as the tiles surely tell, is one"
    )
    leaning_sure: float = Field(
        9.0,
        gt=1,
        description="such a movement over its error; 600 crops that were only cut out reach 7.2, of 46 turned or resized ones 44 have 11",
    )
    leaning_sigma: float = Field(0.5, gt=0, description="plane px; tiles with a larger predicted error are not asked for that")
    motion_tile_px: int = Field(16, ge=8, description="plane px; side of a tile whose own displacement is measured")
    motion_sigma: float = Field(0.08, description="plane px; tiles with a larger predicted error cannot tell")
    least_motion_tiles: int = Field(4, description="such tiles needed to do without full-size windows")
    least_stretch_tiles: int = Field(
        12,
        ge=4,
        description="such tiles needed to tell a stretch of a resized crop from parts that move, and that a plain crop has none",
    )
    calm_median: float = Field(
        3.0, description="median tile displacement in units of its error; true crops at 1/8 stay below 4.3, bursts above 13"
    )
    moving_median: float = Field(7.0, description="the same from which parts are moving for sure; bursts at 1/8 start at 8")
    sure_moving_median: float = Field(
        12.0, description="the same from which nothing more is asked; 888 true crops reach 5.5, 20 of 36 bursts are above"
    )
    sure_moving_tiles: int = Field(20, ge=1, description="such tiles wanted then")
    calm_most: float = Field(12.0, description="90% quantile of the same")
    map_step_px: int = Field(8, ge=1, description="full-size px per px of the map on which windows are chosen")
    window_px: int = Field(
        128, ge=32, description="original px; side of a full-size window: a moved object fills it, noise averages out"
    )
    windows_per_side: int = Field(3, ge=1, description="at most this squared windows: enough to see what does not move together")
    calm_windows_per_side: int = Field(
        2, ge=1, description="the same where no tile moves, and only the last part of a pixel is asked"
    )
    least_edge_windows: int = Field(
        5, ge=3, description="agreeing windows that tell the edges of a turned crop better than its plane"
    )
    least_grain_windows: int = Field(3, ge=1, description="agreeing windows that confirm a place where all tiles agree evenly")
    again_px: float = Field(
        2.0, gt=0, description="median shift of a resized crop's windows that asks for a second look from there"
    )
    most_error_px: float = Field(0.5, gt=0, description="crop px; predicted error of the edges above which a place is not found")
    window_ncc: float = Field(0.35, description="band-passed NCC below which a window says nothing")
    window_rest: float = Field(0.3, description="median unexplained share up to which windows stand for tiles that have no texture")
    agreeing_px: float = Field(
        0.25, gt=0, description="original px from the place up to which a window of a crop that was only cut out agrees with it"
    )
    agreeing_share: float = Field(
        0.6, gt=0, le=1, description="share of such windows, and at least ``least_edge_windows``, that confirms a whole pixel"
    )
    window_share: float = Field(0.4, description="share of windows that must agree unless the tiles convince already")
    lively: float = Field(
        12.0, gt=0, description="grey levels; deviation of a full-size window that neither noise nor JPEG outweighs"
    )
    lively_rest: float = Field(
        0.15,
        gt=0,
        description="median unexplained share of such windows from which they show something else: of 377 right crops with edits of tone, "
        "sharpening or noise the others than one stamped window have 0.06 at the most; sheets of the same lines with other numbers 0.2 to "
        "0.7, as do crops under a watermark, halftones and drawings made of black and white alone",
    )
    lively_unlike: float = Field(
        0.35,
        gt=0,
        description="the same of any two: something small that was painted over, or a stamp, fills one of them at the most",
    )
    strange_rest: float = Field(
        0.75,
        gt=0,
        description="unexplained share of the best window from which none agrees: true crops reach 0.66, a facade elsewhere 0.80",
    )
    unlike_share: float = Field(
        0.02,
        gt=0,
        description="share of the texture that is in tiles of something else, above which a place where no window comes to "
        "``window_rest`` is doubtful: of 3,289 true crops such ones reach 0.004, twins of a stereo pair mostly 0.03 to 0.35",
    )
    unlike_sure: float = Field(
        0.2, gt=0, description="the same from which it is another view for sure; a title written all over a crop reaches 0.15"
    )
    unlike_tiles: float = Field(
        0.2,
        gt=0,
        description="share of the tiles that show something else, whatever windows say, above which no small thing is painted over",
    )
    depth_reach: float = Field(
        0.125,
        gt=0,
        description="share of the crop's long side up to which such tiles are looked for: a near thing before a far one",
    )
    depth_ncc: float = Field(
        0.8, description="their correlation there; tiles of something painted over reach it, but each elsewhere"
    )
    depth_tiles: int = Field(
        2,
        ge=1,
        description="such tiles, moved by the same, that make a crop doubtful; 3,000 true crops have 1, painted over or stamped ones 2",
    )
    depth_sure_tiles: int = Field(
        5, ge=1, description="the same that tell another view of the scene; a copied patch as large as that is no small one"
    )
    scattered_px: float = Field(
        4.0,
        gt=0,
        description="original px; upper quartile of the distances at which the windows of a crop that was only cut out lie from its "
        "place, above which it is not there: 384 true crops reach 2.1, planks of another scale that are much alike 6, the next slat 11",
    )
    reach_px: float = Field(8.0, gt=0, description="original px a window looks around: a neighbouring frame moves by more than 1")
    window_sigma: float = Field(0.25, description="working px; predicted error above which a window's shift says nothing")
    moved_px: float = Field(0.7, gt=0, description="original px; bursts spread by 1.36 or more, true crops by 0.63 at most")
    moved_sure_px: float = Field(
        1.5, gt=0, description="the same where the others confirm a whole pixel: edits of tone move windows of smooth parts by 1.3"
    )
    moved_ratio: float = Field(1.6, gt=1, description="unexplained share at the common place over that at a window's own place")
    stretched_share: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="upper quartile of how far windows lie from a common stretch and turn, over that from a common shift, below which a"
        " crop taken for one as it was cut was resized by a pixel or two, and nothing in it has moved",
    )
    burst_share: float = Field(0.25, description="share of moved windows that makes a neighbouring frame; fewer are doubtful")
    burst_windows: int = Field(2, ge=1, description="moved windows that make a neighbouring frame")
    suspect_px: float = Field(0.9, gt=0, description="original px; a tile that wants to move less than this is left alone")
    suspect_ratio: float = Field(
        14.0,
        description="displacement over its error that sends a tile to full size; objects that moved and can be told reach 17 to 80",
    )
    suspect_least: float = Field(5.0, description="the same, for further tiles once one is clear")
    most_suspects: int = Field(6, ge=0, description="such tiles looked at, the clearest first")
    whole_px: float = Field(
        0.25, gt=0, description="px from a whole number up to which full-size windows take a crop for cut out; true ones reach 0.18"
    )
    whole_sigmas: float = Field(8.0, gt=0, description="the same in units of their error; true ones, skies among them, reach 15")
    whole_spreads: float = Field(
        4.0, gt=0, description="the same in units of their disagreement, which edits of tone bring into smooth pictures"
    )
    rescan_scale: float = Field(
        1.1,
        gt=1,
        description="crops resampled at nearly the original's size, or enlarged, must be explained by it, or are another scan; "
        "smaller ones do not show enough to decode both files for",
    )
    most_unexplained: float = Field(
        2.1,
        description="variance of what neither the original nor the crop's file explains, over what is allowed for: of 1,100 turned "
        "crops of any quality one reaches 2.2; of another scan's crops one in ten has less at JPEG 75, a third at JPEG 40",
    )
    alone_gap: float = Field(
        0.15,
        description="distance of the plain NCC elsewhere from which a small crop is believed without this: eight of nine wrong places of "
        "crops of an edge had 0.1 or less; one in sixty right ones, saved twice or strongly edited, becomes doubtful",
    )
    rounded: float = Field(
        0.4,
        description="grey levels; what full-size windows leave unexplained up to which that is but rounding: plain crops have 0.3",
    )
    other_noise: float = Field(
        4.5,
        description="the same where nothing but full-size pixels at hand gave rise to the question: of 55 right crops, some edited, "
        "none has 2; frames of a burst in which hardly anything moved have 3 to 18, crops freed from noise or lettered all over as well; "
        "what the original's own file has rounded away is added",
    )
    other_noise_shrunk: float = Field(
        6.5, description="the same of shrunk crops: all edits together, and the clipping they bring, make 5 to 6.3 of right ones"
    )
    another_picture: float = Field(
        3.0,
        description="the same from which it is another scan for sure; sharpened crops of an original that was saved anew reach 2.5",
    )
    ask_coarse_px: int = Field(120, description="plane px; a crop this large shows a turn or stretch at half resolution, too")
